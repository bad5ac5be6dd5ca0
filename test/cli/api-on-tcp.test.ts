import assert from "node:assert/strict";
import { execFile, type ChildProcess } from "node:child_process";
import { readFile, stat, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { promisify } from "node:util";
import type { HealthView } from "../../src/daemon/views.ts";
import { atEnd, temporaryDirectory } from "../daemon/support.ts";
import { requireTool } from "../support/tools.ts";
import { launch, run, type Result } from "./support.ts";

const execute = promisify(execFile);
const ullage = join(import.meta.dirname, "../../bin/ullage");

interface TcpDaemon {
  directory: string;
  /** `127.0.0.1:PORT` */
  address: string;
  /** A client command over TCP. */
  overTcp(args: string[], token?: string): Promise<Result>;
  /** The same over the unix socket, which must succeed; with --json. */
  json<T>(args: string[]): Promise<T>;
}

async function launchOnTcp(t: TestContext): Promise<TcpDaemon> {
  const directory = await temporaryDirectory(t);
  const socket = `unix:${directory}/api.sock`;
  const listen = ["--nbd", `unix:${directory}/nbd.sock`, "--api", "127.0.0.1:0", socket];
  const { announced } = await launch<HealthView>(t, ["serve", "--data", join(directory, "data"), ...listen]);
  const { address } = announced.listeners[0];
  return {
    directory,
    address,
    overTcp: (args, token) =>
      run([...args, "--api", address], { env: { ULLAGE_TOKEN: token, ULLAGE_API: "unix:/nowhere" } }),
    async json<T>(args: string[]): Promise<T> {
      const { code, stdout, stderr } = await run([...args, "--api", socket, "--json"]);
      assert.equal(code, 0, stderr);
      return JSON.parse(stdout) as T;
    },
  };
}

void test("a token lets commands in over TCP, from the environment or a file, as far as its scope goes", async (t) => {
  const daemon = await launchOnTcp(t);
  const { secret } = await daemon.json<{ secret: string }>(["token", "create", "ci", "--scope", "write"]);
  const made = await daemon.overTcp(["volume", "create", "v", "--size", "1M"], secret);
  assert.deepEqual([made.code, made.stdout], [0, "v is ready: 1M, NBD export 'v'\n"]);
  const file = join(daemon.directory, "ci.token");
  await writeFile(file, `${secret}\nnot the token\n`);
  const listed = await daemon.overTcp(["volume", "ls", "--token-file", file], "ullage_wrong");
  assert.equal(listed.code, 0, listed.stderr);
  assert.equal((await run(["volume", "ls", "--api", `http://${daemon.address}/`, "--token-file", file])).code, 0);
  const refused = await daemon.overTcp(["token", "ls"], secret);
  assert.equal(refused.code, 1);
  assert.match(refused.stderr, /^ullage: this takes a token with scope admin; this one has scope write\n/);
  await daemon.json(["token", "rm", "ci"]);
  const removed = await daemon.overTcp(["volume", "ls"], secret);
  assert.match(removed.stderr, /^ullage: the token is not one of this server's\n/);
});

void test("without a token the message says where one goes", async (t) => {
  const daemon = await launchOnTcp(t);
  for (const token of [undefined, "", " "]) {
    const { code, stderr } = await daemon.overTcp(["volume", "ls"], token);
    assert.equal(code, 1);
    assert.match(stderr, /^ullage: this takes a token.*\n +give one with --token-file FILE or \$ULLAGE_TOKEN/);
  }
  const missing = await daemon.overTcp(["volume", "ls", "--token-file", join(daemon.directory, "none")]);
  assert.match(missing.stderr, /^ullage: can't read the token in \S+none: ENOENT/);
  const strange = await daemon.overTcp(["volume", "ls"], "two words");
  assert.match(strange.stderr, /^ullage: \$ULLAGE_TOKEN holds no token\n/);
});

void test("a token is printed once, alone, so that it can go into a file; lists tell who has which", async (t) => {
  const daemon = await launchOnTcp(t);
  const socket = ["--api", `unix:${daemon.directory}/api.sock`];
  const made = await run(["token", "create", "grafana", "--scope", "read", "--expires", "30d", ...socket]);
  assert.match(made.stdout, /^ullage_[0-9a-f]{32}_[A-Za-z0-9_-]{43}\n$/);
  assert.match(made.stderr, /^'grafana' has scope read for 30d; this is the only time it is shown\n$/);
  await daemon.json(["token", "create", "ci", "--scope", "admin"]);
  const listed = (await run(["token", "ls", ...socket])).stdout;
  assert.match(listed, /^ci +admin +\S+ \S+Z +- +-\ngrafana +read +\S+ \S+Z +\S+ \S+Z +-$/m);
  const all = await daemon.json<object>(["token", "ls"]);
  assert.ok(!JSON.stringify(all).includes(made.stdout.trim().slice(-43)));
  assert.equal((await stat(join(daemon.directory, "data/tokens.json"))).mode & 0o777, 0o600);
  for (const [args, said] of [
    [["ci", "--scope", "read"], /there is a token 'ci' already/],
    [["-x", "--scope", "read"], /unknown option/],
    [["x", "--scope", "root"], /Allowed choices are read, write, admin/],
    [["x"], /required option '--scope <scope>' not specified/],
    [["x", "--scope", "read", "--expires", "0d"], /times look like 45s, 30m, 12h or 30d/],
    [["x/y", "--scope", "read"], /^ullage: names begin with/],
  ] as [string[], RegExp][]) {
    const { code, stderr } = await run(["token", "create", ...args, ...socket]);
    assert.notEqual(code, 0, args.join(" "));
    assert.match(stderr, said);
  }
});

void test("an address of the API that is taken, or open to others without tokens, stops the start", async (t) => {
  const data = ["serve", "--data", join(await temporaryDirectory(t), "data")];
  const nbd = ["--nbd", "127.0.0.1:0"];
  const other = createServer().listen(0, "127.0.0.1");
  atEnd(t, () => new Promise((resolve) => other.close(resolve)));
  await new Promise((resolve) => other.once("listening", resolve));
  const { port } = other.address() as { port: number };
  const taken = await run([...data, ...nbd, "--api", `127.0.0.1:${port}`]);
  assert.deepEqual([taken.code, taken.stdout], [1, ""]);
  assert.match(taken.stderr, new RegExp(`ullage: can't listen on 127\\.0\\.0\\.1:${port}: it is in use`));
  const open = await run([...data, ...nbd, "--api", "0.0.0.0:0", "--api-auth", "off"]);
  assert.equal(open.code, 1);
  assert.match(open.stderr, /ullage: the API is not opened on 0\.0\.0\.0:\d+ without tokens: others could reach it/);
  const misnamed = await run([...data, ...nbd, "--api", "127.0.0.1:0", "--api-host", "https://ullage.example.org"]);
  assert.equal(misnamed.code, 2);
  assert.match(misnamed.stderr, /'https:\/\/ullage\.example\.org' is not a host name/);
});

void test("an API that other machines can reach is warned of, at start and in health", async (t) => {
  const data = join(await temporaryDirectory(t), "data");
  const args = ["serve", "--data", data, "--nbd", `unix:${data}/nbd.sock`, "--api", "0.0.0.0:0"];
  const open = await launch<HealthView>(t, args);
  assert.deepEqual(
    open.announced.warnings.map(({ code }) => code),
    ["api-open"],
  );
  assert.match((await open.stop()).stderr, /warn the API on 0\.0\.0\.0:\d+ speaks plain HTTP to other machines/);
});

/** @returns what it has printed */
async function untilServing(child: ChildProcess): Promise<string> {
  let printed = "";
  for (const stream of [child.stdout!, child.stderr!]) stream.on("data", (text: string) => (printed += text));
  while (!printed.includes("Ctrl-C stops it")) {
    assert.equal(child.exitCode, null, printed);
    await new Promise((next) => setTimeout(next, 20));
  }
  return printed;
}

void test("on a terminal serve prints a link that opens the dashboard and its API, elsewhere none", async (t) => {
  if (!requireTool(t, "python3", "curl")) return;
  const directory = await temporaryDirectory(t);
  const args = ["serve", "--data", join(directory, "data"), "--nbd", `unix:${directory}/nbd.sock`];
  const command = ["sh", ullage, ...args, "--api", "127.0.0.1:0"];
  const child = execFile("python3", ["-c", "import pty, sys; pty.spawn(sys.argv[1:])", ...command], {
    timeout: 60_000,
  });
  const ended = new Promise((resolve) => child.once("close", resolve));
  atEnd(t, async () => {
    const { pid } = JSON.parse(await readFile(join(directory, "data/lock"), "utf8")) as { pid: number };
    process.kill(pid, "SIGTERM");
    await ended;
  });
  const printed = await untilServing(child);
  const [, link, token] = /Dashboard {2}(http:\/\/127\.0\.0\.1:\d+\/)#token=(\S+)/.exec(printed)!;
  const status = async (...more: string[]): Promise<string> =>
    (await execute("curl", ["-s", "-o", "/dev/null", "-w", "%{http_code}", ...more])).stdout;
  assert.equal(await status(link), "200");
  assert.equal(await status(`${link}v1/tokens`), "401");
  assert.equal(await status("-H", `Authorization: Bearer ${token}`, `${link}v1/tokens`), "200");
});

void test("what goes into a file or a journal has no link that opens anything", async (t) => {
  const directory = await temporaryDirectory(t);
  const args = ["serve", "--data", join(directory, "data"), "--nbd", `unix:${directory}/nbd.sock`];
  const child = execFile("sh", [ullage, ...args, "--api", "127.0.0.1:0"], { timeout: 60_000 });
  const ended = new Promise((resolve) => child.once("close", resolve));
  const printed = await untilServing(child);
  child.kill("SIGTERM");
  await ended;
  assert.doesNotMatch(printed, /token/);
});
