import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { createServer } from "node:net";
import { readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";
import type { HealthView, VolumeView } from "../../src/daemon/views.ts";
import { atEnd, temporaryDirectory } from "../daemon/support.ts";
import { requireTool } from "../support/tools.ts";
import { launch, launchDaemon, run } from "./support.ts";

const execute = promisify(execFile);
const timeout = 60_000;

async function image(directory: string, bytes: number): Promise<string> {
  const path = join(directory, "image.raw");
  const content = Buffer.alloc(bytes);
  for (let at = 0; at + 4 <= bytes; at += 4096) content.writeUInt32LE(at, at);
  await writeFile(path, content);
  return path;
}

void test("a volume is an NBD export as soon as it is made, by its name and, alone, by the empty one", async (t) => {
  if (!requireTool(t, "nbdinfo", "nbdcopy")) return;
  const daemon = await launchDaemon(t);
  const directory = await temporaryDirectory(t);
  const source = await image(directory, 3_000_000);
  await daemon.json(["volume", "create", "web1", "--from", source]);
  for (const name of ["web1", ""]) {
    const { stdout } = await execute("nbdinfo", ["--size", daemon.uri(name)], { timeout });
    assert.equal(stdout.trim(), "3000320", name);
  }
  const copy = join(directory, "copy.raw");
  await execute("nbdcopy", [daemon.uri("web1"), copy], { timeout });
  assert.ok((await readFile(copy)).subarray(0, 3_000_000).equals(await readFile(source)));

  await daemon.json(["volume", "create", "web2", "--size", "1M"]);
  const { stdout } = await execute("nbdinfo", ["--list", "--json", daemon.uri("")], { timeout });
  const listed = JSON.parse(stdout) as { exports: { "export-name": string }[] };
  assert.deepEqual(listed.exports.map((found) => found["export-name"]).sort(), ["web1", "web2"]);
  await assert.rejects(execute("nbdinfo", ["--size", daemon.uri("")], { timeout }), /no export named ''/);
  await daemon.json(["volume", "rm", "web2"]);
  await assert.rejects(execute("nbdinfo", ["--size", daemon.uri("web2")], { timeout }));
});

void test("what was written is there after a clean stop and after kill -9", async (t) => {
  if (!requireTool(t, "qemu-io")) return;
  const dataDir = join(await temporaryDirectory(t), "data");
  const io = async (uri: string, ...commands: string[]): Promise<string> =>
    (await execute("qemu-io", ["-f", "raw", ...commands.flatMap((command) => ["-c", command]), uri], { timeout }))
      .stdout;
  const first = await launchDaemon(t, dataDir);
  await first.json(["volume", "create", "v", "--size", "16M"]);
  await io(first.uri("v"), "write -P 1 0 1M", "flush");
  const stopped = await first.stop();
  assert.equal(stopped.code, 0, stopped.stderr);

  const second = await launchDaemon(t, dataDir);
  assert.doesNotMatch(await io(second.uri("v"), "read -P 1 0 1M"), /Pattern verification failed/);
  await io(second.uri("v"), "write -P 2 0 64k");
  await second.stop("SIGKILL");

  const third = await launchDaemon(t, dataDir);
  const text = await io(third.uri("v"), "read -P 2 0 64k", "read -P 1 64k 960k");
  assert.doesNotMatch(text, /Pattern verification failed/);
  assert.equal((await third.json<VolumeView>(["volume", "show", "v"])).state, "ok");
  await third.stop();
  const checked = await run(["check", dataDir, "--json"]);
  assert.equal(checked.code, 0, checked.stdout);
  assert.equal((JSON.parse(checked.stdout) as { ok: boolean }).ok, true);
});

void test("durability rule 20: two daemons on one directory, and check beside a daemon: the second is told who is first", async (t) => {
  const daemon = await launchDaemon(t);
  const { pid } = daemon.announced;
  for (const args of [
    ["serve", "--data", daemon.dataDir, "--nbd", "127.0.0.1:0"],
    ["check", daemon.dataDir],
    ["repair", daemon.dataDir],
  ]) {
    const { code, stderr } = await run(args);
    assert.equal(code, 1);
    assert.match(stderr, new RegExp(`^ullage: ${daemon.dataDir} is in use by process ${pid} \\(ullage serve`));
    assert.match(stderr, /stop that process first/);
  }
  assert.equal((await daemon.cli(["volume", "ls"])).code, 0);
});

void test("a port in use is an error, and the data directory is free again afterwards", async (t) => {
  const dataDir = join(await temporaryDirectory(t), "data");
  const other = createServer().listen(0, "127.0.0.1");
  atEnd(t, () => new Promise((resolve) => other.close(resolve)));
  await new Promise((resolve) => other.once("listening", resolve));
  const { port } = other.address() as { port: number };
  const refused = await run(["serve", "--data", dataDir, "--nbd", `127.0.0.1:${port}`]);
  assert.equal(refused.code, 1);
  assert.match(refused.stderr, new RegExp(`ullage: can't listen on 127\\.0\\.0\\.1:${port}: it is in use`));
  await launchDaemon(t, dataDir);
});

void test("sockets left by a killed daemon are replaced, and are for their owner only", async (t) => {
  const dataDir = join(await temporaryDirectory(t), "data");
  const first = await launchDaemon(t, dataDir);
  await first.stop("SIGKILL");
  await launchDaemon(t, dataDir);
  for (const name of ["api.sock", "nbd.sock"]) {
    assert.equal((await stat(join(dataDir, name))).mode & 0o777, 0o600, name);
  }
});

void test("NBD that other machines can reach without TLS is warned of, at start and in health", async (t) => {
  const dataDir = join(await temporaryDirectory(t), "data");
  const open = await launch<HealthView>(t, ["serve", "--data", dataDir, "--nbd", "0.0.0.0:0"]);
  assert.deepEqual(
    open.announced.warnings.map(({ code }) => code),
    ["nbd-open"],
  );
  assert.match((await open.stop()).stderr, /warn NBD on 0\.0\.0\.0:\d+ is open to other machines without TLS/);
});

void test("logs go to stderr, as lines or as JSON, as loud as asked for", async (t) => {
  const dataDir = join(await temporaryDirectory(t), "data");
  const loud = await launch(t, ["serve", "--data", dataDir, "--nbd", "127.0.0.1:0", "--log-format", "json"]);
  const lines = (await loud.stop()).stderr.trimEnd().split("\n");
  const messages = lines.map((line) => JSON.parse(line) as { time: string; level: string; msg: string });
  assert.deepEqual([messages.at(-1)!.level, messages.at(-1)!.msg], ["info", "stopped"]);
  const quiet = await launch(t, ["serve", "--data", dataDir, "--nbd", "127.0.0.1:0", "--log-level", "error"]);
  assert.equal((await quiet.stop()).stderr, "");
});

void test("a daemon takes over the sockets that its service manager opened", async (t) => {
  if (!requireTool(t, "nbdinfo")) return;
  const directory = await temporaryDirectory(t);
  const source = await image(directory, 1_048_576);
  const ullage = join(import.meta.dirname, "../../bin/ullage");
  const { stdout } = await execute("nbdinfo", ["--size", "[", "sh", ullage, "run", source, "]"], { timeout });
  assert.match(stdout, /^1048576$/m);
});

void test("Ctrl-C that arrives twice at once, as below npm, is one request to stop cleanly", async (t) => {
  const daemon = await launchDaemon(t);
  const source = await image(await temporaryDirectory(t), 4096);
  await daemon.json(["volume", "create", "v", "--from", source]);
  daemon.child.kill("SIGINT");
  daemon.child.kill("SIGINT");
  assert.equal((await daemon.result).code, 0);
});

void test("TLS needs keys, and with `require` the URI says so", async (t) => {
  const directory = await temporaryDirectory(t);
  const data = ["serve", "--data", join(directory, "data"), "--nbd", "127.0.0.1:0"];
  const keyless = await run([...data, "--tls", "require"]);
  assert.equal(keyless.code, 1);
  assert.match(keyless.stderr, /^ullage: TLS is require but there is no key\n.*--tls-certs DIR or --tls-psk FILE/);
  await writeFile(join(directory, "keys.psk"), `alice:${"ab".repeat(32)}\n`);
  const args = [...data, "--tls", "require", "--tls-psk", join(directory, "keys.psk")];
  const { announced } = await launch<HealthView>(t, args);
  assert.match(announced.listeners.find(({ protocol }) => protocol === "nbd")!.uri!, /^nbds:\/\/127\.0\.0\.1:\d+\/$/);
});

void test("a download is shown while it runs", async (t) => {
  const { startHttpSource } = await import("../support/http-source.ts");
  await using source = await startHttpSource({ content: Buffer.alloc(2 ** 20, 1), bytesPerSecond: 400 * 1024 });
  source.onRequest = () => ({ kind: "ignore-range" });
  const daemon = await launchDaemon(t);
  const { code, stdout } = await daemon.cli(["volume", "create", "v", "--from", source.url, "--download"]);
  assert.equal(code, 0);
  assert.match(stdout, /^\[#* *\] \d+% {2}.* of 1M.*\n/);
  assert.match(stdout, /v is ready: 1M, NBD export 'v'\n$/);
});

const activate = `
import fcntl, os, socket, sys
high = []
for path in sys.argv[1:3]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    high.append(fcntl.fcntl(listener.detach(), fcntl.F_DUPFD, 100))
os.dup2(high[0], 3)
os.dup2(high[1], 4)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2", LISTEN_FDNAMES="api:nbd")
os.execvp("sh", ["sh"] + sys.argv[3:])
`;

void test("systemd's sockets are told apart by their names", async (t) => {
  if (!requireTool(t, "python3", "nbdinfo")) return;
  const directory = await temporaryDirectory(t);
  const [api, nbd] = [join(directory, "a.sock"), join(directory, "n.sock")];
  const ullage = join(import.meta.dirname, "../../bin/ullage");
  const args = ["-c", activate, api, nbd, ullage, "serve", "--data", join(directory, "data")];
  const child = execFile("python3", args, { timeout });
  atEnd(t, async () => {
    child.kill("SIGKILL");
    await new Promise((resolve) => child.once("close", resolve));
  });
  // The sockets accept before the daemon does: the command waits in the backlog until it is ready.
  while ((await stat(nbd).catch(() => undefined)) === undefined) await new Promise((next) => setTimeout(next, 10));
  const made = await run(["volume", "create", "v", "--size", "1M", "--api", `unix:${api}`]);
  assert.equal(made.code, 0, made.stderr);
  const { stdout } = await execute("nbdinfo", ["--size", `nbd+unix:///v?socket=${nbd}`], { timeout });
  assert.equal(stdout.trim(), "1048576");
});
