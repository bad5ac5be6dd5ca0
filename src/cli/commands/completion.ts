import { Argument, type Command } from "commander";
import { complete, type Candidate, type Completion, type CompletionSource } from "../completion.ts";
import { completionScripts, shells, type Shell } from "../completion-scripts.ts";
import { print } from "../output.ts";

/** A TAB that waits longer is worse than one that does not know the volumes. */
const patienceMs = 1500;

/** bash's own words end at these. */
const breaks = /[=:@]/;

export function addCompletionCommand(program: Command): void {
  program
    .command("completion")
    .addArgument(new Argument("<shell>").choices(shells))
    .description("print the script that makes a shell complete commands, options and volumes")
    .addHelpText(
      "after",
      `
Examples:
  $ source <(ullage completion bash)                                          for this shell
  $ ullage completion bash > ~/.local/share/bash-completion/completions/ullage
  $ ullage completion zsh > ~/.zfunc/_ullage                                  with ~/.zfunc in $fpath
  $ ullage completion fish > ~/.config/fish/completions/ullage.fish`,
    )
    .action((shell: Shell) => print(completionScripts[shell].trimEnd()));

  program.command("__complete <shell> [words...]", { hidden: true }).action(async (shell: Shell, given: string[]) => {
    const words = shell === "bash" ? joinBroken(given) : given;
    const found = await complete(program, words, daemonSource(words));
    // Whatever the daemon still has to say comes too late.
    process.stdout.write(format(found, shell, words.at(-1) ?? ""), () => process.exit());
  });
}

function format({ kind, candidates }: Completion, shell: Shell, typed: string): string {
  const lines = candidates.map((each) => formatCandidate(each, shell, typed));
  return `${[kind, ...lines].join("\n")}\n`;
}

function formatCandidate({ value, description }: Candidate, shell: Shell, typed: string): string {
  if (shell === "bash") {
    const kept = /^.*[=:@]/s.exec(typed)?.[0] ?? ""; // bash replaces what stands behind the last break
    return value.slice(kept.length);
  }
  const [separator, word] = shell === "zsh" ? [":", value.replaceAll(":", "\\:")] : ["\t", value];
  return description === "" ? word : `${word}${separator}${description}`;
}

/** `--tls` `=` `on` as `--tls=on`, `web1` `@` `old` as `web1@old`. */
function joinBroken(words: readonly string[]): string[] {
  const joined: string[] = [];
  let open = false;
  for (const word of words) {
    const isBreak = word.length === 1 && breaks.test(word);
    if (joined.length > 0 && (isBreak || open)) joined.push(`${joined.pop()}${word}`);
    else joined.push(word);
    open = isBreak;
  }
  return joined;
}

function daemonSource(words: readonly string[]): CompletionSource {
  const given = (flag: string): string | undefined => {
    const at = words.lastIndexOf(flag);
    return at === -1 ? words.findLast((word) => word.startsWith(`${flag}=`))?.slice(flag.length + 1) : words[at + 1];
  };
  const ask = async (path: string): Promise<unknown> => {
    const { ApiClient } = await import("../api-client.ts");
    return ApiClient.find(given("--api"), given("--token-file")).call(path);
  };
  return {
    volumes: () =>
      quickly(async () => {
        const { volumeNames } = await import("../volume-names.ts");
        return volumeNames(ask);
      }),
    snapshots: (volume) =>
      quickly(async () => {
        const path = `/v1/snapshots?volume=${encodeURIComponent(volume)}&limit=1000`;
        const { snapshots } = (await ask(path)) as { snapshots: { volume: string; name: string }[] };
        return snapshots.map(({ name }) => `${volume}@${name}`);
      }),
    images: () =>
      quickly(async () => {
        const { images } = (await ask("/v1/images?limit=200")) as { images: { id: string }[] };
        return images.map(({ id }) => id);
      }),
    exports: () =>
      quickly(async () => {
        const { exports } = (await ask("/v1/exports?limit=1000")) as { exports: { name: string; implicit: boolean }[] };
        return exports.filter(({ implicit }) => !implicit).map(({ name }) => name);
      }),
  };
}

/** What `work` finds, or nothing when it fails or takes too long. */
async function quickly(work: () => Promise<string[]>): Promise<string[]> {
  const late = new Promise<string[]>((resolve) => {
    setTimeout(() => resolve([]), patienceMs).unref();
  });
  return Promise.race([work().catch(() => []), late]);
}
