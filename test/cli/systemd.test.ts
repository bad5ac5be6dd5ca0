import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { copyFile, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { promisify } from "node:util";
import { parseConfig } from "../../src/config/config-file.ts";
import { openListeningSocket } from "../../src/export/listening-socket.ts";
import { atEnd, temporaryDirectory } from "../daemon/support.ts";
import { requireTool } from "../support/tools.ts";
import { run } from "./support.ts";

const execute = promisify(execFile);
const timeout = 60_000;
const root = join(import.meta.dirname, "../..");
const units = join(root, "packaging/systemd");

/** Where data usually is: on tmpfs, other system calls are made. */
async function directoryOnDisk(t: TestContext): Promise<string> {
  const out = join(root, "test/out");
  await mkdir(out, { recursive: true });
  const directory = await mkdtemp(join(out, "systemd-"));
  atEnd(t, () => rm(directory, { recursive: true, force: true }));
  return directory;
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  const { port } = server.address() as { port: number };
  await new Promise((resolve) => server.close(resolve));
  return port;
}

void test("systemd hands its sockets over: the first client starts the daemon, on an empty data directory", async (t) => {
  if (!requireTool(t, "systemd-socket-activate", "nbdinfo")) return;
  const dataDir = join(await temporaryDirectory(t), "data");
  await mkdir(dataDir);
  const [api, nbd] = [join(dataDir, "api.sock"), join(dataDir, "nbd.sock")];
  const port = await freePort();
  const addresses = [api, nbd, `127.0.0.1:${port}`].flatMap((each) => ["--listen", each]);
  const command = [join(root, "bin/ullage"), "serve", "--data", dataDir];
  // It passes on nothing of its environment by itself.
  const environment = [`--setenv=PATH=${process.env.PATH}`, "--fdname=api:nbd:nbd"];
  const child = spawn("systemd-socket-activate", [...addresses, ...environment, ...command], {
    stdio: ["ignore", "ignore", "pipe"],
  });
  let stderr = "";
  child.stderr.on("data", (chunk: Buffer) => (stderr += chunk.toString()));
  const ended = new Promise<number | null>((resolve) => child.once("close", resolve));
  atEnd(t, async () => {
    child.kill("SIGKILL");
    await ended;
  });
  while ((await stat(nbd).catch(() => undefined)) === undefined) await new Promise((next) => setTimeout(next, 10));
  const made = await run(["volume", "create", "v", "--size", "1M", "--api", `unix:${api}`]);
  assert.equal(made.code, 0, made.stderr + stderr);
  for (const uri of [`nbd+unix:///v?socket=${nbd}`, `nbd://127.0.0.1:${port}/v`]) {
    const { stdout } = await execute("nbdinfo", ["--size", uri], { timeout });
    assert.equal(stdout.trim(), "1048576", uri);
  }
  child.kill("SIGTERM");
  assert.equal(await ended, 0, stderr);
  assert.ok((await stat(nbd)).isSocket(), "the sockets are systemd's: they stay for the next start");
});

void test("while the daemon is restarted, its clients wait in the sockets that systemd keeps, and none is refused", async (t) => {
  if (!requireTool(t, "nbdinfo")) return;
  const directory = await temporaryDirectory(t);
  const dataDir = join(directory, "data");
  await mkdir(dataDir);
  const api = join(directory, "api.sock");
  const nbd = join(directory, "nbd.sock");
  const sockets = [
    await openListeningSocket({ kind: "unix", path: api }),
    await openListeningSocket({ kind: "unix", path: nbd }),
    await openListeningSocket({ kind: "tcp", host: "127.0.0.1", port: 0 }),
  ];
  atEnd(t, async () => sockets.forEach((socket) => socket.close()));
  const { port } = sockets[2].address as { port: number };

  /** As systemd does: the sockets are descriptors 3 and up, the process knows that they are meant for it. */
  const start = (): { end(signal: NodeJS.Signals): Promise<void> } => {
    const command = ["-c", 'LISTEN_PID=$$ exec "$@"', "sh", join(root, "bin/ullage"), "serve", "--data", dataDir];
    const child = spawn("sh", command, {
      env: { ...process.env, LISTEN_FDS: "3", LISTEN_FDNAMES: "api:nbd:nbd" },
      stdio: ["ignore", "ignore", "inherit", ...sockets.map(({ fd }) => fd)],
    });
    const ended = new Promise<void>((resolve) => child.once("close", () => resolve()));
    const end = async (signal: NodeJS.Signals): Promise<void> => {
      child.kill(signal);
      await ended;
    };
    atEnd(t, () => end("SIGKILL"));
    return { end };
  };
  const clients = () =>
    Promise.all([
      ...[`nbd+unix:///v?socket=${nbd}`, `nbd://127.0.0.1:${port}/v`].map(async (uri) => {
        const { stdout } = await execute("nbdinfo", ["--size", uri], { timeout });
        return stdout.trim();
      }),
      run(["volume", "show", "v", "--json", "--api", `unix:${api}`]).then(({ code, stdout, stderr }) => {
        assert.equal(code, 0, stderr);
        return String((JSON.parse(stdout) as { size: number }).size);
      }),
    ]);

  let daemon = start();
  const made = await run(["volume", "create", "v", "--size", "1M", "--api", `unix:${api}`]);
  assert.equal(made.code, 0, made.stderr);
  for (const signal of ["SIGTERM", "SIGKILL"] as const) {
    await daemon.end(signal);
    let answered = false;
    const sizes = clients().finally(() => (answered = true));
    sizes.catch(() => undefined); // awaited below
    // Nobody is there: long enough for all of them to have been refused.
    await new Promise((resolve) => setTimeout(resolve, 1_500));
    assert.equal(answered, false, "they wait");
    daemon = start();
    assert.deepEqual(await sizes, ["1048576", "1048576", "1048576"], signal);
  }
  await daemon.end("SIGTERM");
});

void test("the units are what systemd expects, and leave the service little that it could do", async (t) => {
  if (!requireTool(t, "systemd-analyze", "root")) return;
  const directory = await mkdtemp("/run/ullage-units-"); // systemd-analyze reads no units below /tmp
  atEnd(t, () => rm(directory, { recursive: true, force: true }));
  for (const name of await readdir(units)) await copyFile(join(units, name), join(directory, name));
  const service = join(directory, "ullage.service");
  // Where it is installed is not known here.
  const text = await readFile(service, "utf8");
  await writeFile(service, text.replace("ExecStart=ullage ", `ExecStart=${join(root, "bin/ullage")} `));
  const sockets = ["ullage-api.socket", "ullage-nbd.socket"].map((name) => join(directory, name));
  const verified = await execute("systemd-analyze", ["verify", "--man=no", service, ...sockets], { timeout });
  assert.equal(verified.stderr + verified.stdout, "");
  // Fails above 2.5 of 10.
  await execute("systemd-analyze", ["security", "--offline=yes", "--threshold=25", "--no-pager", service], { timeout });
});

void test("the unit's own mounts are new at every start: after kill -9 everything acknowledged is there all the same", async (t) => {
  if (!requireTool(t, "root", "unshare", "qemu-io")) return;
  const directory = await directoryOnDisk(t);
  const [api, nbd] = [join(directory, "api.sock"), join(directory, "nbd.sock")];
  const serve = async (): Promise<{ kill(): Promise<void> }> => {
    const listeners = ["--api", `unix:${api}`, "--nbd", `unix:${nbd}`];
    const command = [join(root, "bin/ullage"), "serve", "--data", join(directory, "data"), ...listeners, "--json"];
    const child = spawn("unshare", ["--mount", ...command], { stdio: ["ignore", "pipe", "inherit"] });
    const ended = new Promise<void>((resolve) => child.once("close", () => resolve()));
    const kill = async (): Promise<void> => {
      child.kill("SIGKILL");
      await ended;
    };
    atEnd(t, kill);
    await new Promise((resolve) => child.stdout.once("data", resolve));
    return { kill };
  };
  // `unsafe`: never flushed.
  const io = async (command: string): Promise<string> => {
    const args = ["-t", "unsafe", "-f", "raw", "-c", command, `nbd+unix:///v?socket=${nbd}`];
    return (await execute("qemu-io", args, { timeout })).stdout;
  };
  const first = await serve();
  const made = await run(["volume", "create", "v", "--size", "16M", "--api", `unix:${api}`]);
  assert.equal(made.code, 0, made.stderr);
  await io("write -P 0x5a 1M 4M");
  await first.kill();
  await serve();
  assert.match(await io("read -P 0x5a 1M 4M"), /^read 4194304\/4194304/);
  const { stdout } = await run(["volume", "show", "v", "--json", "--api", `unix:${api}`]);
  assert.equal((JSON.parse(stdout) as { state: string }).state, "ok");
});

/** The system calls behind `SystemCallFilter=`: names and @sets, a `~` in front takes away. */
async function allowedCalls(): Promise<Set<string>> {
  const { stdout } = await execute("systemd-analyze", ["syscall-filter", "--no-pager"], { timeout });
  const sets = new Map<string, string[]>();
  let members: string[] = [];
  for (const line of stdout.split("\n")) {
    if (line.startsWith("@")) sets.set(line, (members = []));
    else if (/^ +[@\w-]+$/.test(line)) members.push(line.trim());
  }
  const expand = (name: string): string[] => (name.startsWith("@") ? sets.get(name)!.flatMap(expand) : [name]);
  const allowed = new Set<string>();
  const unit = await readFile(join(units, "ullage.service"), "utf8");
  for (const [, takeAway, names] of unit.matchAll(/^SystemCallFilter=(~?)(.*)$/gm)) {
    for (const call of names.split(" ").flatMap(expand)) {
      if (takeAway === "") allowed.add(call);
      else allowed.delete(call);
    }
  }
  return allowed;
}

void test("every system call that serving and recovery make is one that the unit allows", async (t) => {
  if (!requireTool(t, "systemd-analyze", "strace", "unshare", "qemu-io", "root")) return;
  const allowed = await allowedCalls();
  assert.ok(allowed.has("preadv2") && !allowed.has("reboot"), "the sets were understood");
  const directory = await directoryOnDisk(t);
  const [dataDir, api, nbd] = ["data", "api.sock", "nbd.sock"].map((name) => join(directory, name));
  const lives = [
    { signal: "SIGKILL", work: ["write -P 1 0 1M", "discard 0 64k"] },
    { signal: "SIGTERM", work: ["read 0 1M", "write -z 1M 1M", "flush"] },
  ] as const;
  for (const [index, { signal, work }] of lives.entries()) {
    const summary = join(directory, `calls-${index}`);
    // Mounts of its own, as the unit has: recovery then has to look closer.
    const traced = ["--mount", "strace", "-f", "-c", "-U", "name", "-o", summary, join(root, "bin/ullage"), "serve"];
    const places = ["--data", dataDir, "--api", `unix:${api}`, "--nbd", `unix:${nbd}`, "--json"];
    const child = spawn("unshare", [...traced, ...places], { stdio: ["ignore", "pipe", "ignore"] });
    const ended = new Promise<void>((resolve) => child.once("close", () => resolve()));
    await new Promise((resolve) => child.stdout.once("data", resolve));
    const { pid } = JSON.parse(await readFile(join(dataDir, "lock"), "utf8")) as { pid: number };
    atEnd(t, async () => {
      child.kill("SIGKILL");
      await ended;
    });
    const cli = (...args: string[]) => run([...args, "--api", `unix:${api}`]);
    if (index === 0) assert.equal((await cli("volume", "create", "v", "--size", "16M")).code, 0);
    const commands = work.flatMap((each) => ["-c", each]);
    await execute("qemu-io", ["-t", "unsafe", "-f", "raw", ...commands, `nbd+unix:///v?socket=${nbd}`], { timeout });
    assert.equal((await cli("volume", "show", "v")).code, 0);
    process.kill(pid, signal);
    await ended;
    const calls = (await readFile(summary, "utf8")).split("\n").filter((line) => /^\w+$/.test(line.trim()));
    const made = calls.map((line) => line.trim()).filter((name) => name !== "total" && name !== "syscall");
    assert.ok(made.includes("pwrite64") || made.includes("pread64"), made.join(" "));
    assert.deepEqual(
      made.filter((name) => !allowed.has(name)),
      [],
      `life ${index + 1}`,
    );
  }
});

void test("no option of the unit hides what durability is decided by, or stops the engine", async () => {
  const lines = (await readFile(join(units, "ullage.service"), "utf8")).split("\n");
  const options = new Map(
    lines.flatMap((line) => (/^[A-Za-z]/.test(line) ? [line.split(/=(.*)/s) as [string, string]] : [])),
  );
  // Durability rule 7: the boot id.
  assert.equal(options.get("ProcSubset") ?? "all", "all");
  assert.equal(options.get("MemoryDenyWriteExecute"), undefined);
  // Durability rule 6: a poisoned volume's second mark outlives a restart.
  assert.equal(options.get("RuntimeDirectoryPreserve"), "yes");
  // A data directory that the service manager throws away.
  assert.equal(options.get("DynamicUser"), undefined);
});

void test("the configuration that comes with the units is good", async () => {
  const text = await readFile(join(units, "ullage.toml"), "utf8");
  assert.deepEqual(parseConfig(text, "/etc/ullage").problems, []);
});
