import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdir, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { promisify } from "node:util";
import { Command, Option } from "commander";
import { complete, type CompletionSource } from "../../src/cli/completion.ts";
import { temporaryDirectory } from "../daemon/support.ts";
import { requireTool } from "../support/tools.ts";
import { launchDaemon, run, type Daemon } from "./support.ts";

const execute = promisify(execFile);
const timeout = 60_000;

const source: CompletionSource = {
  volumes: () => Promise.resolve(["web1", "web2", "mail"]),
  snapshots: (volume) => Promise.resolve([`${volume}@old`, `${volume}@new`]),
  images: () => Promise.resolve(["5f3c1234", "77aa1234"]),
  exports: () => Promise.resolve(["boot", "backup"]),
};

function program(): Command {
  const root = new Command("ullage");
  const volume = root.command("volume");
  volume.command("create <name>").option("--size <size>", "how large").option("--from <source>", "the image");
  volume.command("import <name> <file>");
  volume.command("export <vol[@snap]> <file>");
  volume.command("show <name>").option("--json", "as an object");
  volume.command("secret", { hidden: true });
  root.command("snapshot").command("rm <vol@snap>");
  root
    .command("serve")
    .addOption(new Option("--tls <mode>", "TLS").choices(["off", "on"]))
    .option("--nbd <addr...>", "where")
    .option("--data <dir>", "the data");
  root.command("token").command("rm <name>");
  const exports = root.command("export");
  exports.command("add <vol[@snap]>").requiredOption("--nbd <exportname>", "the name");
  exports.command("rm <export>");
  root.command("image").command("show <image>");
  return root;
}

/** What `words` (the last one is being typed) can become. */
async function values(...words: string[]): Promise<string[]> {
  return (await complete(program(), words, source)).candidates.map(({ value }) => value);
}

void test("commands, options, their values and volumes are completed by where the cursor stands", async () => {
  assert.deepEqual(await values("v"), ["volume"]);
  assert.deepEqual(await values("volume", ""), ["create", "import", "export", "show", "help"]);
  assert.deepEqual(await values("volume", "show", "we"), ["web1", "web2"]);
  assert.deepEqual(await values("volume", "show", "--json", "m"), ["mail"]);
  assert.deepEqual(await values("volume", "show", "web1", ""), [], "no second name");
  assert.deepEqual(await values("volume", "create", ""), [], "a new name");
  assert.deepEqual(await values("volume", "import", ""), [], "a new name, too");
  assert.deepEqual(await values("volume", "export", "m"), ["mail"]);
  assert.deepEqual(await values("volume", "export", "web1@o"), ["web1@old"]);
  assert.deepEqual(await values("volume", "create", "x", "--s"), ["--size"]);
  assert.deepEqual(await values("volume", "create", "x", "--size", ""), []);
  assert.deepEqual(await values("serve", "--tls", "o"), ["off", "on"]);
  assert.deepEqual(await values("serve", "--tls=of"), ["--tls=off"]);
  assert.deepEqual(await values("serve", "--nbd", "a", "b", "--t"), ["--tls"], "an end of a list of values");
  assert.deepEqual(await values("token", "rm", ""), [], "another kind of name");
  assert.deepEqual(await values("snapshot", "rm", "web1@o"), ["web1@old"]);
  assert.deepEqual(await values("export", "add", "w"), ["web1", "web2"]);
  assert.deepEqual(await values("export", "add", "web1@n"), ["web1@new"]);
  assert.deepEqual(await values("export", "add", "web1", "--nbd", ""), [], "a new name");
  assert.deepEqual(await values("export", "rm", "bo"), ["boot"]);
  assert.deepEqual(await values("image", "show", "5"), ["5f3c1234"]);
  assert.deepEqual(await values("volume", "show", "--", "--j"), [], "no options behind --");
});

void test("files, directories and what a word goes on behind are told apart", async () => {
  const kind = async (...words: string[]): Promise<string> => (await complete(program(), words, source)).kind;
  assert.equal(await kind("volume", "create", "x", "--from", "./de"), "files");
  assert.equal(await kind("volume", "export", "web1", "./de"), "files");
  assert.equal(await kind("serve", "--data", ""), "directories");
  assert.equal(await kind("snapshot", "rm", "we"), "open");
  assert.equal(await kind("volume", ""), "words");
});

/** A daemon with two volumes, and a shell that has `ullage` on its PATH. */
async function shellWorld(t: TestContext): Promise<{ daemon: Daemon; env: NodeJS.ProcessEnv; directory: string }> {
  const directory = await temporaryDirectory(t);
  const daemon = await launchDaemon(t);
  for (const name of ["web1", "web2"]) await daemon.json(["volume", "create", name, "--size", "1M"]);
  await mkdir(join(directory, "bin"));
  await symlink(join(import.meta.dirname, "../../bin/ullage"), join(directory, "bin/ullage"));
  await mkdir(join(directory, "images"));
  await writeFile(join(directory, "image.raw"), "");
  const env = {
    ...process.env,
    HOME: directory,
    PATH: `${directory}/bin:${process.env.PATH}`,
    ULLAGE_API: `unix:${daemon.dataDir}/api.sock`,
  };
  return { daemon, env, directory };
}

const lines = (text: string): string[] => text.trimEnd().split("\n").sort();

/** On a busy machine the daemon may be too late for one TAB: then it is pressed again. */
async function pressAgain<T>(tab: () => Promise<T>, enough: (found: T) => boolean): Promise<T> {
  for (let presses = 1; presses < 5; presses++) {
    const found = await tab().catch(() => undefined);
    if (found !== undefined && enough(found)) return found;
  }
  return tab();
}

const some = (found: string[]): boolean => found.join("") !== "";

const bashScript = `
source <(ullage completion bash)
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_ullage
printf '%s\\n' "\${COMPREPLY[@]}"
`;

void test("bash completes, with the words as bash breaks them", async (t) => {
  const { env, directory } = await shellWorld(t);
  const tab = async (...words: string[]): Promise<string[]> => {
    const { stdout } = await execute("bash", ["-c", bashScript, "bash", ...words], { env, cwd: directory, timeout });
    return lines(stdout);
  };
  assert.deepEqual(await tab("ullage", "volu"), ["volume"]);
  assert.deepEqual(await pressAgain(() => tab("ullage", "volume", "show", ""), some), ["web1", "web2"]);
  assert.deepEqual(await tab("ullage", "serve", "--tls", "=", "r"), ["require"]);
  assert.deepEqual(await tab("ullage", "volume", "create", "x", "--from", "im"), ["image.raw", "images"]);
  assert.deepEqual(await tab("ullage", "serve", "--data", "im"), ["images"]);
  assert.deepEqual(await tab("ullage", "help", "dur"), ["durability"]);
});

void test("fish completes, with descriptions", async (t) => {
  if (!requireTool(t, "fish")) return;
  const { env, directory } = await shellWorld(t);
  const tab = async (line: string): Promise<string[]> => {
    const script = `ullage completion fish | source; complete -C '${line}'`;
    return lines((await execute("fish", ["-c", script], { env, cwd: directory, timeout })).stdout);
  };
  assert.deepEqual(await tab("ullage volume sho"), ["show\tshow one volume"]);
  assert.deepEqual(await pressAgain(() => tab("ullage volume show we"), some), ["web1", "web2"]);
  assert.deepEqual(await tab("ullage serve --tls=req"), ["--tls=require"]);
  assert.ok((await tab("ullage serve --data im")).some((line) => line.startsWith("images/")));
});

/** A zsh in a terminal of its own is sent $1 and a TAB; ends when $2 was shown. */
const zshScript = `
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell 'PROMPT=; autoload -U compinit; compinit -u -d $HOME/.zcompdump; source <(ullage completion zsh)'
zpty -w shell "print READ""Y"
zpty -r shell output '*READY*'
zpty -w -n shell "$1"$'\\t'
zpty -r shell output "*$2*"
`;

void test("zsh completes, with descriptions", async (t) => {
  if (!requireTool(t, "zsh")) return;
  const { env, directory } = await shellWorld(t);
  // Ends with an error, by the time-out, when what is waited for is never shown.
  const tab = (line: string, shown: string): Promise<unknown> => {
    const args = ["-f", "-c", zshScript, "zsh", line, shown];
    return execute("zsh", args, { env: { ...env, TERM: "dumb" }, cwd: directory, timeout: 20_000 });
  };
  await tab("ullage volu", "ullage volume ");
  await tab("ullage volume s", "show *-- show one volume");
  await pressAgain(
    () => tab("ullage volume show w", "ullage volume show web"),
    () => true,
  );
  await tab("ullage serve --tls=r", "--tls=require");
  await tab("ullage serve --data ima", "images/");
});

void test("the scripts come with no daemon, and completion goes without volumes", async (t) => {
  const directory = await temporaryDirectory(t);
  const env = { ULLAGE_API: `unix:${directory}/none.sock` };
  for (const shell of ["bash", "zsh", "fish"]) {
    const { code, stdout } = await run(["completion", shell], { env });
    assert.equal(code, 0);
    assert.match(stdout, new RegExp(`${shell} completion of ullage`));
  }
  const { code, stdout, stderr } = await run(["__complete", "fish", "--", "volume", "show", ""], { env });
  assert.deepEqual([code, stdout, stderr], [0, "words\n", ""]);
  assert.equal((await run(["completion", "csh"])).code, 2);
});
