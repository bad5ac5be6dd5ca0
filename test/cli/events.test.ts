import assert from "node:assert/strict";
import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import type { VolumeView } from "../../src/daemon/views.ts";
import { atEnd, temporaryDirectory } from "../daemon/support.ts";
import { launchDaemon, run, type Daemon } from "./support.ts";

const ullage = join(import.meta.dirname, "../../bin/ullage");

interface Listener {
  child: ChildProcess;
  /** Resolves with everything printed so far, once it holds `text`. */
  until(text: string): Promise<string>;
  /** Exit code and stderr. */
  ended: Promise<[code: number | null, stderr: string]>;
}

/** `ullage events`, once it has been told of a volume named `first`. */
async function listen(t: TestContext, daemon: Daemon, ...options: string[]): Promise<Listener> {
  const child = spawn("sh", [ullage, "events", ...options], {
    env: { ...process.env, ULLAGE_API: `unix:${daemon.dataDir}/api.sock` },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let [stdout, stderr] = ["", ""];
  child.stdout.on("data", (chunk: Buffer) => (stdout += chunk.toString()));
  child.stderr.on("data", (chunk: Buffer) => (stderr += chunk.toString()));
  const ended = once(child, "close").then(([code]): [number | null, string] => [code as number | null, stderr]);
  atEnd(t, async () => {
    child.kill("SIGKILL");
    await ended;
  });
  const until = async (text: string): Promise<string> => {
    while (!stdout.includes(text)) await once(child.stdout, "data", { signal: AbortSignal.timeout(30_000) });
    return stdout;
  };
  // It says nothing before the first event: volumes come and go until it has seen one.
  for (let n = 0; !stdout.includes("first"); n++) {
    await daemon.cli(["volume", "create", `first${n}`, "--size", "4k"]);
    if (child.exitCode !== null) throw new Error(`it ended: ${stderr}`);
  }
  return { child, until, ended };
}

void test("events are printed as they come, until Ctrl-C", async (t) => {
  const daemon = await launchDaemon(t);
  const listener = await listen(t, daemon);
  await daemon.cli(["volume", "create", "web1", "--size", "4k"]);
  await daemon.cli(["snapshot", "create", "web1@s"]);
  await daemon.cli(["volume", "rm", "web1", "--snapshots"]);
  const text = await listener.until("volume-removed");
  assert.match(text, /^\d\d:\d\d:\d\d {2}volume-created {5}web1: creating, none, 0 connections$/m);
  assert.match(text, /^\d\d:\d\d:\d\d {2}snapshot-created {3}web1@s$/m);
  listener.child.kill("SIGINT");
  assert.deepEqual(await listener.ended, [0, ""]);
});

void test("with --json every event is a line with the object of the API", async (t) => {
  const daemon = await launchDaemon(t);
  const listener = await listen(t, daemon, "--json");
  await daemon.cli(["volume", "create", "web1", "--size", "4k"]);
  const volume = await daemon.json<VolumeView>(["volume", "show", "web1"]);
  const lines = (await listener.until('"name":"web1","size":4096,"state":"ok"')).trimEnd().split("\n");
  const last = JSON.parse(lines.at(-1)!) as { id: string; event: string; data: VolumeView };
  assert.match(last.id, /^[0-9a-f]{8}-\d+$/);
  assert.deepEqual([last.event, last.data], ["volume-changed", volume]);
  await daemon.stop();
  const [code, stderr] = await listener.ended;
  assert.equal(code, 1);
  assert.match(stderr, /^ullage: the daemon has ended its events\n +it was stopped, or is being restarted\n$/);
});

void test("it ends when nobody reads it any more, and says when there is no daemon", async (t) => {
  const daemon = await launchDaemon(t);
  const listener = await listen(t, daemon);
  listener.child.stdout!.destroy();
  for (let n = 0; n < 20 && listener.child.exitCode === null; n++) {
    await daemon.cli(["volume", "create", "v", "--size", "4k"]);
    await daemon.cli(["volume", "rm", "v"]);
  }
  assert.equal((await listener.ended)[0], 0);
  const { code, stderr } = await run(["events", "--api", "unix:/nowhere"]);
  assert.deepEqual([code, stderr.split("\n")[0]], [1, "ullage: no daemon listens on unix:/nowhere"]);
});

void test("whoever listens with a token hears that it was removed", async (t) => {
  const data = join(await temporaryDirectory(t), "data");
  const daemon = await launchDaemon(t, data, ["--api", `unix:${data}/api.sock`, "--api", "127.0.0.1:0"]);
  const { secret } = await daemon.json<{ secret: string }>(["token", "create", "reader", "--scope", "read"]);
  const { address } = daemon.announced.listeners.find(
    (each) => each.address.startsWith("127.") && each.protocol === "api",
  )!;
  const listening = run(["events", "--api", address], { env: { ULLAGE_TOKEN: secret } });
  const used = async (): Promise<boolean> => {
    const { tokens } = await daemon.json<{ tokens: { lastUsedAt: string | null }[] }>(["token", "ls"]);
    return tokens[0].lastUsedAt !== null;
  };
  while (!(await used())) await new Promise((resolve) => setTimeout(resolve, 50));
  await daemon.json(["token", "rm", "reader"]);
  const { code, stderr } = await listening;
  assert.equal(code, 1);
  assert.match(stderr, /^ullage: the token (is not one of this server's|'reader' was removed)/);
});
