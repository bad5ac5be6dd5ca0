import assert from "node:assert/strict";
import { chmodSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { temporaryDirectory } from "../daemon/support.ts";
import { run as runProgram } from "../nbd/support.ts";
import { requireTool } from "../support/tools.ts";
import { launchDaemon, run, type Result } from "./support.ts";

/* Every message says what is wrong, once, and below it what to do next. Exit code 2: used wrongly; 1: it failed. */

function refused({ code, stderr }: Result, expected: number, said: RegExp, next: RegExp): void {
  assert.equal(code, expected, stderr);
  const [what = "", hint = ""] = stderr.split("\n");
  assert.match(what, said);
  assert.match(hint, next, stderr);
  // What the system said stands there without what was said before, and nobody is told of HTTP.
  assert.doesNotMatch(stderr, /(E[A-Z]+): \1|, (open|stat|mkdir) '|body\/|Parse Error|\bat .*\.ts:/);
}

void test("what was typed wrongly is told in the words of the command line", async (t) => {
  const directory = await temporaryDirectory(t);
  const daemon = await launchDaemon(t, join(directory, "data"));
  const cli = (args: string[]): Promise<Result> => daemon.cli(args);
  await daemon.json(["volume", "create", "web1", "--size", "1M"]);
  const names = /^ullage: names begin with a letter or digit/;
  refused(await cli(["volume", "create", "a b", "--size", "1G"]), 2, names, /`--help` behind the command/);
  refused(await cli(["snapshot", "create", "web1@a b"]), 2, names, /`--help` behind the command/);
  refused(await cli(["volume", "rm", "web1@x"]), 2, /is the name of a snapshot/, /ullage snapshot rm web1@x/);

  const rate = await cli(["source", "limit", "none"]);
  assert.deepEqual([rate.code, /'none' is not a rate: .* or off/.test(rate.stderr)], [2, true], rate.stderr);

  const missing = join(directory, "missing");
  const there = new RegExp(`can't write ${missing}/a.raw: there is no directory ${missing}$`);
  refused(await cli(["volume", "export", "web1", `${missing}/a.raw`]), 1, there, new RegExp(`mkdir -p ${missing}$`));
  const unread = new RegExp(`can't read ${missing}: ENOENT: no such file or directory$`);
  refused(await cli(["volume", "import", "y", missing]), 1, unread, /name a file/);
  const noImage = new RegExp(`${missing} does not exist: ENOENT: no such file or directory$`);
  refused(await cli(["volume", "create", "y", "--from", missing]), 1, noImage, /check the path/);
});

void test("an address that is not the API's, and a token that is not there, are told as what they are", async (t) => {
  const directory = await temporaryDirectory(t);
  const daemon = await launchDaemon(t, join(directory, "data"), ["--nbd", `unix:${directory}/nbd.sock`]);
  assert.ok(daemon);
  const nbd = await run(["volume", "ls", "--api", `unix:${directory}/nbd.sock`]);
  refused(nbd, 1, /what listens on .*nbd\.sock speaks no HTTP$/, /address of the API, not that of NBD/);
  const missing = join(directory, "missing");
  const unread = new RegExp(`can't read the token in ${missing}: ENOENT: no such file or directory$`);
  const token = await run(["volume", "ls", "--api", "127.0.0.1:1", "--token-file", missing]);
  refused(token, 1, unread, /ullage token create/);
});

void test("what can't be a data directory, or an address to listen on, is told with what could", async (t) => {
  const directory = await temporaryDirectory(t);
  const file = join(directory, "file");
  writeFileSync(file, "x");
  const foreign = join(directory, "foreign");
  mkdirSync(foreign);
  writeFileSync(join(foreign, "letter.txt"), "x");
  const api = ["--api", `unix:${directory}/api.sock`];
  refused(await run(["serve", "--data", file, ...api]), 1, /file is not a directory$/, /name the directory/);
  const held = /foreign is not a data directory of Ullage: it holds letter\.txt$/;
  refused(await run(["serve", "--data", foreign, ...api]), 1, held, /an empty or a new directory/);
  refused(await run(["check", foreign]), 1, held, /was given with --data/);
  refused(await run(["serve", "--data", "/proc/ullage", ...api]), 1, /\/proc\/ullage can't be made/, /with --data/);
  const data = ["--data", join(directory, "data")];
  const nowhere = await run(["serve", ...data, ...api, "--nbd", "192.0.2.1:10809"]);
  refused(nowhere, 1, /can't listen on 192\.0\.2\.1:10809: EADDRNOTAVAIL$/, /no interface of this machine/);
  const config = await run(["serve", ...data, "--config", join(directory, "missing.toml")]);
  refused(config, 1, /missing\.toml can't be read: ENOENT: no such file or directory$/, /ullage help config/);
});

void test("a data directory of somebody else is named in full, with what its owner can do", async (t) => {
  if (!requireTool(t, "root")) return;
  const directory = await temporaryDirectory(t);
  chmodSync(directory, 0o755);
  const theirs = join(directory, "theirs");
  mkdirSync(theirs, { mode: 0o700 });
  const asNobody = (path: string): Promise<Result> => {
    const user = ["--reuid=65534", "--regid=65534", "--clear-groups", "env", "HOME=/nonexistent"];
    const ullage = join(import.meta.dirname, "../../bin/ullage");
    return runProgram("setpriv", [...user, "sh", ullage, "serve", "--data", path, "--api", `unix:${directory}/a.sock`]);
  };
  const denied = /theirs can't be written by user 65534: .*failed: EACCES: permission denied$/;
  refused(await asNobody(theirs), 1, denied, new RegExp(`chown -R 65534 ${theirs}$`));
  const unmade = /new can't be written by user 65534: .*failed: EACCES: permission denied$/;
  refused(await asNobody(join(directory, "new")), 1, unmade, /a directory that this user may make/);
});
