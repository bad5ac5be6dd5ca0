import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { readdir, readFile, writeFile } from "node:fs/promises";
import { connect, createServer, type Socket } from "node:net";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { promisify } from "node:util";
import type { JobObject } from "../../src/api/job-object.ts";
import type { ImageView, VolumeView } from "../../src/daemon/views.ts";
import { atEnd, temporaryDirectory } from "../daemon/support.ts";
import { standBetween } from "../support/between.ts";
import { startHttpSource } from "../support/http-source.ts";
import { requireTool } from "../support/tools.ts";
import { launchDaemon, run, type Daemon, type Result } from "./support.ts";

/* What a command does whose daemon is killed, or restarted, in the middle of it. */

const execute = promisify(execFile);
const patience = { timeout: 150_000 };
const MiB = 2 ** 20;
const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

interface Daemons {
  dataDir: string;
  now: Daemon;
  /** Ends the daemon, and starts the next one on the same data. */
  restart(signal: NodeJS.Signals): Promise<void>;
  /** Resolves when the last restart is over. */
  restarted(): Promise<void>;
}

async function startDaemons(t: TestContext): Promise<Daemons> {
  const first = await launchDaemon(t);
  const { dataDir } = first;
  const daemons: Daemons = {
    dataDir,
    now: first,
    restart: (signal) => (restarting = restart(signal)),
    restarted: async () => restarting,
  };
  let restarting: Promise<void> | undefined;
  const restart = async (signal: NodeJS.Signals): Promise<void> => {
    await daemons.now.stop(signal);
    await pause(500); // long enough for a client to find nobody there
    daemons.now = await launchDaemon(t, dataDir);
  };
  atEnd(t, async () => {
    await restarting; // of a test that failed meanwhile
    await daemons.now.stop("SIGKILL");
  });
  return daemons;
}

/** Stands before the API and calls `onBytes` once, when clients have sent so many bytes; what comes then waits for it. */
async function meter(t: TestContext, dataDir: string, bytes: number, onBytes: () => Promise<void>): Promise<string> {
  let sent = 0;
  let called = false;
  const path = await standBetween(t, join(dataDir, "api.sock"), (client, daemon) => {
    daemon.pipe(client);
    client.on("data", (chunk: Buffer) => {
      daemon.write(chunk);
      sent += chunk.length;
      if (sent < bytes || called) return;
      called = true;
      client.pause();
      void onBytes().then(() => client.resume());
    });
  });
  return `unix:${path}`;
}

/** Waits for a job that has got somewhere. */
async function underWay(daemons: Daemons): Promise<void> {
  for (;;) {
    const socket = join(daemons.dataDir, "api.sock");
    const { stdout } = await execute("curl", ["-sS", "--unix-socket", socket, "http://x/v1/jobs"]);
    const { jobs } = JSON.parse(stdout) as { jobs: JobObject[] };
    if (jobs.some(({ state, progress }) => state === "running" && progress.done > 0)) return;
    await pause(20);
  }
}

for (const signal of ["SIGKILL", "SIGTERM"] as const) {
  void test(`image pull goes on after ${signal} and a restart of the daemon`, patience, async (t) => {
    if (!requireTool(t, "curl")) return;
    const content = randomBytes(24 * MiB);
    await using source = await startHttpSource({ content, bytesPerSecond: 8 * MiB });
    const daemons = await startDaemons(t);
    const pulling = daemons.now.cli(["image", "pull", source.url]);
    await underWay(daemons);
    await daemons.restart(signal);
    const { code, stdout, stderr } = await pulling;
    assert.deepEqual([code, stderr], [0, ""]);
    assert.match(stdout, /disk\.img is in the cache: 24M\n$/);
    const { images } = await daemons.now.json<{ images: ImageView[] }>(["image", "ls"]);
    assert.deepEqual(
      images.map(({ readyBytes }) => readyBytes),
      [content.length],
    );
  });

  void test(`volume create --download begins anew after ${signal}, and makes one volume`, patience, async (t) => {
    if (!requireTool(t, "curl", "nbdcopy")) return;
    const content = randomBytes(16 * MiB);
    await using source = await startHttpSource({ content, bytesPerSecond: 8 * MiB });
    source.onRequest = () => ({ kind: "ignore-range" });
    const daemons = await startDaemons(t);
    const making = daemons.now.cli(["volume", "create", "v", "--from", source.url, "--download"]);
    await underWay(daemons);
    await daemons.restart(signal);
    const { code, stderr } = await making;
    assert.deepEqual([code, stderr], [0, ""]);
    const copy = join(await temporaryDirectory(t), "copy");
    await execute("nbdcopy", [daemons.now.uri("v"), copy]);
    assert.ok((await readFile(copy)).equals(content));
    assert.equal((await readdir(join(daemons.dataDir, "blobs"))).length, 1);
  });

  void test(`a file is imported once more after ${signal} in the middle, and arrives whole`, patience, async (t) => {
    if (!requireTool(t, "nbdcopy")) return;
    const daemons = await startDaemons(t);
    const directory = await temporaryDirectory(t);
    const content = randomBytes(20 * MiB);
    await writeFile(join(directory, "disk"), content);
    const api = await meter(t, daemons.dataDir, 8 * MiB, () => daemons.restart(signal));
    const imported = await run(["volume", "import", "v", join(directory, "disk"), "--json"], {
      env: { ULLAGE_API: api },
    });
    assert.deepEqual([imported.code, imported.stderr], [0, ""]);
    assert.equal((JSON.parse(imported.stdout) as VolumeView).size, content.length);
    await execute("nbdcopy", [daemons.now.uri("v"), join(directory, "copy")]);
    assert.ok((await readFile(join(directory, "copy"))).equals(content));
    const { volumes } = await daemons.now.json<{ volumes: VolumeView[] }>(["volume", "ls"]);
    assert.deepEqual([volumes.length, (await readdir(join(daemons.dataDir, "volumes"))).length], [1, 1]);
  });
}

void test("a connection that breaks while the daemon lives makes no second volume of a file", patience, async (t) => {
  const daemons = await startDaemons(t);
  const file = join(await temporaryDirectory(t), "disk");
  await writeFile(file, randomBytes(20 * MiB));
  let broken: Socket | undefined;
  const path = join(await temporaryDirectory(t), "api.sock");
  const server = createServer((client) => {
    const daemon = connect(join(daemons.dataDir, "api.sock"));
    for (const socket of [client, daemon]) socket.on("error", () => undefined);
    client.on("close", () => daemon.destroy());
    daemon.on("close", () => client.destroy());
    daemon.pipe(client);
    client.pipe(daemon);
    let sent = 0;
    client.on("data", (chunk: Buffer) => {
      sent += chunk.length;
      if (broken !== undefined || sent < 8 * MiB) return;
      broken = client;
      client.destroy();
    });
  }).listen(path);
  atEnd(t, async () => void server.close());
  await once(server, "listening");
  const imported = await run(["volume", "import", "v", file], { env: { ULLAGE_API: `unix:${path}` } });
  assert.deepEqual([imported.code, imported.stderr], [0, ""]);
  assert.ok(broken !== undefined);
  const { volumes } = await daemons.now.json<{ volumes: VolumeView[] }>(["volume", "ls"]);
  assert.deepEqual(
    volumes.map(({ name, size }) => [name, size]),
    [["v", 20 * MiB]],
  );
});

void test("what can't be read twice is said to be so, and nothing of it is left", patience, async (t) => {
  const daemons = await startDaemons(t);
  const api = await meter(t, daemons.dataDir, 8 * MiB, () => daemons.restart("SIGKILL"));
  const child = spawn("sh", [join(import.meta.dirname, "../../bin/ullage"), "volume", "import", "v", "-"], {
    env: { ...process.env, ULLAGE_API: api },
  });
  child.stdin.on("error", () => undefined); // it leaves before it has read all
  child.stdin.end(randomBytes(20 * MiB));
  const result: Result = { code: null, stdout: "", stderr: "" };
  child.stderr.on("data", (chunk: Buffer) => (result.stderr += chunk.toString()));
  [result.code] = (await once(child, "close")) as [number | null];
  await daemons.restarted();
  assert.equal(result.code, 1);
  assert.match(
    result.stderr,
    /^ullage: the connection to the daemon broke; nothing is left of 'v'.*\n +standard input can't be read again: .*send a file/,
  );
  const { volumes } = await daemons.now.json<{ volumes: VolumeView[] }>(["volume", "ls"]);
  assert.deepEqual([volumes, await readdir(join(daemons.dataDir, "volumes"))], [[], []]);
});
