import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { test } from "node:test";
import { promisify } from "node:util";
import type { ExportView, VolumeView } from "../../src/daemon/views.ts";
import { requireTool } from "../support/tools.ts";
import { launchDaemon, type Daemon } from "./support.ts";

const execute = promisify(execFile);
const timeout = 60_000;

async function nbdsh(uri: string, script: string): Promise<string> {
  return (await execute("nbdsh", ["-u", uri, "-c", script], { timeout })).stdout.trim();
}

/** Names and descriptions, as a client that asks for the list gets them. */
async function listed(daemon: Daemon): Promise<Record<string, string>> {
  const { stdout } = await execute("nbdinfo", ["--list", "--json", daemon.uri("")], { timeout });
  const { exports } = JSON.parse(stdout) as { exports: { "export-name": string; description?: string }[] };
  return Object.fromEntries(exports.map((found) => [found["export-name"], found.description ?? ""]));
}

void test("clients find a disk under a further name, as it was added, through renames and restarts", async (t) => {
  if (!requireTool(t, "nbdsh", "nbdinfo")) return;
  let daemon = await launchDaemon(t);
  await daemon.json(["volume", "create", "web", "--size", "1M"]);
  await daemon.json(["export", "add", "web", "--nbd", "rw"]);
  const added = await daemon.cli(["export", "add", "web", "--nbd", "ro", "--read-only", "--description", "the lab"]);
  assert.equal(added.stdout, `ro is web, read-only\n  ${daemon.uri("ro")}\n`);
  await nbdsh(daemon.uri("rw"), `h.pwrite(b"x" * 512, 0); h.flush()`);
  assert.equal(await nbdsh(daemon.uri("ro"), `print(h.is_read_only(), h.pread(3, 0))`), "True bytearray(b'xxx')");
  await assert.rejects(nbdsh(daemon.uri("ro"), `h.set_strict_mode(0); h.pwrite(b"y" * 512, 0)`), /not permitted/);
  await daemon.json(["snapshot", "create", "web@s"]);
  await daemon.json(["export", "add", "web@s", "--nbd", "then"]);
  await nbdsh(daemon.uri("rw"), `h.pwrite(b"z" * 512, 0); h.flush()`);
  assert.equal(await nbdsh(daemon.uri("then"), `print(h.is_read_only(), h.pread(3, 0))`), "True bytearray(b'xxx')");

  await daemon.json(["volume", "rename", "web", "www"]);
  const names = await listed(daemon);
  assert.deepEqual(Object.keys(names).sort(), ["ro", "rw", "then", "www", "www@s"]);
  assert.equal(names["ro"], "1M, 'www', read-only, the lab");
  await daemon.stop("SIGKILL");
  daemon = await launchDaemon(t, daemon.dataDir);
  assert.deepEqual(await listed(daemon), names);
  assert.equal(await nbdsh(daemon.uri("rw"), `print(h.pread(3, 0))`), "bytearray(b'zzz')");

  const table = (await daemon.cli(["export", "ls"])).stdout;
  assert.match(table, /^EXPORT +OF +ACCESS +URI$/m);
  assert.match(table, /^ro +www: the lab +read-only +nbd\+unix:\/\/\/ro\?socket=.+nbd\.sock$/m);
  assert.match(table, /^www +itself +read-write /m);
  assert.match(table, /^www@s +snapshot +read-only /m);
  const { exports } = await daemon.json<{ exports: ExportView[] }>(["export", "ls", "www"]);
  assert.equal(exports.length, 5);

  assert.equal((await daemon.cli(["export", "rm", "ro"])).stdout, "ro is no export any more\n");
  await assert.rejects(nbdsh(daemon.uri("ro"), ``), /no volume 'ro'|not found|ENOENT|No such/i);
  await daemon.json(["volume", "rm", "www", "--snapshots"]);
  assert.deepEqual(await listed(daemon), {});
});

void test("the volume's id is a name that outlives a rename, and is not listed", async (t) => {
  if (!requireTool(t, "nbdsh", "nbdinfo")) return;
  const daemon = await launchDaemon(t);
  const { id } = await daemon.json<VolumeView>(["volume", "create", "web", "--size", "1M"]);
  await nbdsh(daemon.uri("web"), `h.pwrite(b"x" * 512, 0)`);
  await daemon.json(["snapshot", "create", "web@s"]);
  await daemon.json(["volume", "rename", "web", "www"]);
  assert.equal(await nbdsh(daemon.uri(id), `print(h.pread(1, 0), h.is_read_only())`), "bytearray(b'x') False");
  assert.equal(await nbdsh(daemon.uri(`${id}@s`), `print(h.pread(1, 0), h.is_read_only())`), "bytearray(b'x') True");
  assert.deepEqual(Object.keys(await listed(daemon)).sort(), ["www", "www@s"]);
  await daemon.json(["volume", "create", id, "--size", "1M"]);
  assert.equal(await nbdsh(daemon.uri(id), `print(h.pread(1, 0))`), "bytearray(b'\\x00')", "names go before ids");
});

void test("used wrongly, export commands say what is wrong and change nothing", async (t) => {
  const daemon = await launchDaemon(t);
  await daemon.json(["volume", "create", "web", "--size", "1M"]);
  const cases: [string[], number, RegExp][] = [
    [["export", "add", "web"], 2, /required option '--nbd <exportname>'/],
    [["export", "add", "--nbd", "x"], 2, /missing required argument/],
    [["export", "add", "wbe", "--nbd", "x"], 1, /no volume 'wbe'[^]*web/],
    [["export", "add", "web@s", "--nbd", "x"], 1, /has no snapshot 's'/],
    [["export", "add", "web", "--nbd", "a b"], 2, /name/],
    [["export", "add", "web", "--nbd", "web"], 1, /there is a volume 'web' already/],
    [["export", "rm", "web"], 1, /own name/],
    [["export", "rm", "x"], 1, /no export 'x'/],
    [["export", "ls", "x"], 1, /no volume 'x'/],
    [["export", "ad"], 2, /Did you mean add/],
  ];
  for (const [args, code, message] of cases) {
    const result = await daemon.cli(args);
    assert.equal(result.code, code, `${args.join(" ")}: ${result.stderr}`);
    assert.match(result.stderr, message);
    assert.equal(result.stdout, "");
  }
  const { exports } = await daemon.json<{ exports: ExportView[] }>(["export", "ls"]);
  assert.deepEqual(
    exports.map(({ name }) => name),
    ["web"],
  );
});
