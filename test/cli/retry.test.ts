import assert from "node:assert/strict";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import type { SnapshotView, VolumeView } from "../../src/daemon/views.ts";
import { standBetween } from "../support/between.ts";
import { launchDaemon, run, type Daemon, type Result } from "./support.ts";

/** Stands between a client and the daemon, and loses the daemon's first answers, as a daemon does that is killed. */
async function lossy(
  t: TestContext,
  socketPath: string,
  losses: number,
): Promise<{ path: string; lost: () => number }> {
  let lost = 0;
  const path = await standBetween(t, socketPath, (client, daemon) => {
    client.pipe(daemon);
    daemon.on("data", (answer: Buffer) => {
      if (lost < losses) {
        lost++;
        client.destroy();
      } else client.write(answer);
    });
  });
  return { path, lost: () => lost };
}

async function throughLoss(t: TestContext, daemon: Daemon, args: string[]): Promise<Result> {
  const { path, lost } = await lossy(t, join(daemon.dataDir, "api.sock"), 2);
  const result = await run(args, { env: { ULLAGE_API: `unix:${path}` } });
  assert.equal(lost(), 2, `${args.join(" ")}: ${result.stderr}`);
  return result;
}

void test("what is made is made once, though the answers get lost on the way", async (t) => {
  const daemon = await launchDaemon(t);
  for (const args of [
    ["volume", "create", "web1", "--size", "1M"],
    ["snapshot", "create", "web1@monday"],
    ["volume", "create", "web2", "--clone", "web1"],
    ["export", "add", "web1@monday", "--nbd", "boot"],
  ]) {
    const { code, stderr } = await throughLoss(t, daemon, args);
    assert.equal(code, 0, `${args.join(" ")}: ${stderr}`);
  }
  const { volumes } = await daemon.json<{ volumes: VolumeView[] }>(["volume", "ls"]);
  assert.deepEqual(
    volumes.map(({ name }) => name),
    ["web1", "web2"],
  );
  const { snapshots } = await daemon.json<{ snapshots: SnapshotView[] }>(["snapshot", "ls"]);
  assert.deepEqual(
    snapshots.map(({ name }) => name),
    ["monday"],
  );
});

void test("a token whose secret got lost on the way is said to be there, with what to do", async (t) => {
  const daemon = await launchDaemon(t);
  const { code, stdout, stderr } = await throughLoss(t, daemon, ["token", "create", "ci", "--scope", "read"]);
  assert.deepEqual([code, stdout], [1, ""]);
  assert.match(
    stderr,
    /^ullage: this request has made the token 'ci' already.*\n +if nobody got it, `ullage token rm ci`/,
  );
});

void test("a request that gets no answer at all is given up, and what is wrong at once is said at once", async (t) => {
  const daemon = await launchDaemon(t);
  const { path, lost } = await lossy(t, join(daemon.dataDir, "api.sock"), 100);
  const removed = await run(["volume", "rm", "web1"], { env: { ULLAGE_API: `unix:${path}` } });
  assert.equal(removed.code, 1);
  assert.equal(lost(), 1, "only what is made under a key is sent again");
  const nowhere = await run(["volume", "create", "v", "--size", "1M"], { env: { ULLAGE_API: `unix:${path}.not` } });
  assert.match(nowhere.stderr, /^ullage: no daemon listens/);
});
