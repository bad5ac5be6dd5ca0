/*
 * What `ullage completion SHELL` prints. Each script asks `ullage __complete SHELL -- WORD…`, whose first line is the kind of
 * completion (see completion.ts); candidates follow, with descriptions behind a tab where the shell shows them.
 */

export const shells = ["bash", "zsh", "fish"] as const;
export type Shell = (typeof shells)[number];

/** bash breaks words at `=`, `:` and `@`, too: `__complete bash` puts them together, and answers with the last part. */
const bash = `# bash completion of ullage. Once: source <(ullage completion bash)
# For good: ullage completion bash > ~/.local/share/bash-completion/completions/ullage
_ullage() {
  local answer
  mapfile -t answer < <("\${COMP_WORDS[0]}" __complete bash -- "\${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
  local word=\${COMP_WORDS[COMP_CWORD]}
  case \${answer[0]} in
    files) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$word") ;;
    directories) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -d -- "$word") ;;
    open) compopt -o nospace 2>/dev/null; COMPREPLY=("\${answer[@]:1}") ;;
    *) COMPREPLY=("\${answer[@]:1}") ;;
  esac
}
complete -F _ullage ullage
`;

const zsh = `#compdef ullage
# zsh completion of ullage. For good: ullage completion zsh > DIRECTORY/_ullage, with a DIRECTORY of $fpath.
_ullage() {
  local -a answer candidates
  answer=("\${(@f)$("\${words[1]}" __complete zsh -- "\${(@)words[2,CURRENT]}" 2>/dev/null)}")
  candidates=("\${(@)answer[2,-1]}")
  case \${answer[1]} in
    files) _files ;;
    directories) _files -/ ;;
    open) (( \${#candidates} )) && compadd -S '' -- "\${(@)candidates%%:*}" ;;
    *) (( \${#candidates} )) && _describe -V ullage candidates ;;
  esac
}
if [[ \${funcstack[1]} == _ullage ]]; then _ullage "$@"; else compdef _ullage ullage; fi
`;

const fish = `# fish completion of ullage. For good: ullage completion fish > ~/.config/fish/completions/ullage.fish
function __ullage_complete
    set -l words (commandline -opc)
    set -l answer ($words[1] __complete fish -- $words[2..-1] (commandline -ct) 2>/dev/null)
    switch "$answer[1]"
        case files
            __fish_complete_path (commandline -ct)
        case directories
            __fish_complete_directories (commandline -ct)
        case '*'
            string join \\n -- $answer[2..-1]
    end
end
complete -c ullage -f -a '(__ullage_complete)'
`;

export const completionScripts: Record<Shell, string> = { bash, zsh, fish };
