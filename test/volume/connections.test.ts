import assert from "node:assert/strict";
import { test } from "node:test";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import type { Client } from "../../src/export/block-device.ts";
import type { VolumeSettings } from "../../src/volume/types.ts";
import { volumeDir } from "../../src/volume/paths.ts";
import type { Volume } from "../../src/volume/volume.ts";
import {
  blockBytes,
  chunkBytes,
  expectFilled,
  filled,
  openDescriptors,
  pretendPowerCut,
  write,
  writeAsync,
} from "../support/volume-env.ts";
import { type Call, failing, gate, holdOnce, ofHead, ofLog } from "./faulty-file-system.ts";
import { Lives } from "./lives.ts";

const client = (changes: Partial<Client> = {}): Client => ({
  protocol: "nbd",
  address: "unix",
  remote: false,
  writable: true,
  close: () => undefined,
  ...changes,
});
const remote = client({ remote: true, address: "10.0.0.1:1" });
const headWrite = (call: Call): boolean => call.name === "write" && ofHead(call);
const settings = (changes: Partial<VolumeSettings>): { settings: VolumeSettings } => ({
  settings: { sync: "normal", remoteAfterPowerLoss: "refuse", ...changes },
});

void test("rule 25: a newcomer waits until the last operation of a broken connection has ended", async (t) => {
  const lives = await Lives.create(t, chunkBytes);
  const volume = await lives.open();
  const first = await volume.attach(client());
  const held = holdOnce(lives.faulty, headWrite);
  const writing = writeAsync(volume, 0, filled(1));
  await held.reached;
  first.broken();
  let attached = false;
  const second = volume.attach(client()).then((stay) => {
    attached = true;
    return stay;
  });
  await new Promise(setImmediate);
  assert.equal(attached, false);
  held.open();
  await writing;
  await new Promise(setImmediate);
  assert.equal(attached, false, "the connection says when it is done");
  first.release(false);
  await second;
  await write(volume, 0, filled(2));
  await expectFilled(volume, 0, blockBytes, 2);
});

void test("rule 25: connections that are alive hold no newcomer up, nor does one that ended", async (t) => {
  const lives = await Lives.create(t, chunkBytes);
  const volume = await lives.open();
  const first = await volume.attach(client({ address: "one" }));
  const second = await volume.attach(client({ address: "two", writable: false }));
  assert.deepEqual(
    volume.info().connections.map(({ address, writable }) => [address, writable]),
    [
      ["one", true],
      ["two", false],
    ],
  );
  first.broken();
  first.release(false);
  await volume.attach(client({ address: "three" }));
  second.release(true);
  second.release(true);
  assert.deepEqual(
    volume.info().connections.map(({ address }) => address),
    ["three"],
  );
});

void test("rule 25: close waits for the last operation, whatever it is, and then leaves no descriptor", async (t) => {
  for (const operation of ["write", "read", "trim"] as const) {
    const lives = await Lives.create(t, 4 * chunkBytes);
    const volume = await lives.open();
    await write(volume, 0, filled(1, chunkBytes));
    const held = holdOnce(lives.faulty, (call) => {
      if (operation === "read") return call.name === "read" && ofHead(call);
      return operation === "write" ? headWrite(call) : call.name === "punch";
    });
    let ended = false;
    const work =
      operation === "write"
        ? writeAsync(volume, 0, filled(2))
        : operation === "trim"
          ? volume.trim(0, chunkBytes)
          : readSlowly(volume, lives);
    const working = work.then(() => (ended = true));
    await held.reached;
    const closing = volume.close();
    await new Promise((resolve) => setTimeout(resolve, 50)); // more than it would take if it did not wait
    await assert.rejects(lives.env.fs.lockDirectory(volumeDir(lives.env.dataDir, lives.id)), { code: "locked" });
    assert.equal(ended, false);
    held.open();
    await Promise.all([working, closing]);
    assert.deepEqual(openDescriptors(lives.env.dataDir), [], operation);
  }
});

/** A read that can't be answered at once. */
function readSlowly(volume: Volume, lives: Lives): Promise<void> {
  lives.faulty.cold = true;
  return volume.read(0, blockBytes, IoBuffer.from(filled(0)), 0);
}

void test("rule 25: a volume that is being closed takes nobody new", async (t) => {
  const lives = await Lives.create(t, chunkBytes);
  const volume = await lives.open();
  await volume.close();
  await assert.rejects(volume.attach(client()), { code: "volume-closed" });
});

void test("rule 25: flushing and checkpointing are refused once the volume is being closed, and harm nothing", async (t) => {
  const lives = await Lives.create(t, chunkBytes);
  const volume = await lives.open();
  await write(volume, 0, filled(1));
  const closing = volume.close();
  await Promise.resolve();
  const late = await Promise.allSettled([volume.flush(), volume.checkpoint()]);
  await closing;
  await assert.rejects(volume.flush(), { errno: "ESHUTDOWN" });
  await assert.rejects(volume.checkpoint(), { errno: "ESHUTDOWN" });
  assert.ok(late.length === 2);
  assert.deepEqual(openDescriptors(lives.env.dataDir), []);
  const next = await lives.open();
  assert.equal(next.info().state, "ok");
  await expectFilled(next, 0, blockBytes, 1);
  await next.close();
});

/** Writes, flushes, writes more, loses the power. */
async function losePower(lives: Lives, volume: Volume): Promise<void> {
  await write(volume, 0, filled(1));
  await volume.flush();
  await write(volume, blockBytes, filled(2));
  await lives.kill();
  pretendPowerCut(lives.env, lives.id);
}

void test("rule 16: after a power cut with remote writers connected, writers are refused until the loss is accepted", async (t) => {
  const lives = await Lives.create(t, chunkBytes);
  const volume = await lives.open();
  await volume.attach(remote);
  await losePower(lives, volume);
  for (let start = 0; start < 2; start++) {
    const next = await lives.open();
    assert.equal(next.info().state, "lostUnflushed", `start ${start}`);
    await assert.rejects(next.attach(client()), { code: "lost-unflushed" });
    await next.attach(client({ writable: false }));
    await expectFilled(next, 0, blockBytes, 1);
    await next.close();
  }
  const accepted = await lives.open(undefined, { acceptLoss: true });
  assert.equal(accepted.info().state, "ok");
  await accepted.attach(remote);
  await accepted.close();
  assert.equal((await lives.open()).info().state, "ok", "it is forgotten");
});

void test("rule 16: nobody is refused if the remote writers were not, no longer, or not as writers connected", async (t) => {
  const cases: Record<string, (volume: Volume, lives: Lives) => Promise<void>> = {
    "local writers": async (volume) => void (await volume.attach(client())),
    "a remote reader": async (volume) => void (await volume.attach(client({ remote: true, writable: false }))),
    "remote writers that left": async (volume, lives) => {
      const [one, two] = [await volume.attach(remote), await volume.attach(remote)];
      one.release(true);
      await write(volume, 5 * blockBytes, filled(5));
      const noted = gate();
      let syncs = 0;
      lives.faulty.after = (call) => {
        if (call.name === "datasync" && ofLog(call) && ++syncs === 2) noted.open();
      };
      two.broken();
      two.release(false); // vanished: what it wrote is flushed before it is forgotten
      await noted.opened; // beside: a sync for what it wrote, and one for the note
    },
  };
  for (const [what, connect] of Object.entries(cases)) {
    const lives = await Lives.create(t, chunkBytes);
    const volume = await lives.open();
    await connect(volume, lives);
    await losePower(lives, volume);
    const next = await lives.open();
    assert.equal(next.info().state, "ok", what);
    await next.attach(client());
  }
});

void test("rule 16: what a vanished remote writer wrote is durable before the volume forgets that it was there", async (t) => {
  const lives = await Lives.create(t, chunkBytes);
  const volume = await lives.open();
  const stay = await volume.attach(remote);
  await write(volume, 0, filled(1));
  const sync = gate();
  const reached = gate();
  lives.faulty.before = (call) => {
    if (call.name !== "datasync" || !ofHead(call)) return undefined;
    reached.open();
    return sync.opened;
  };
  stay.broken();
  stay.release(false);
  await reached.opened;
  await lives.kill();
  pretendPowerCut(lives.env, lives.id);
  assert.equal((await lives.open()).info().state, "lostUnflushed");
});

void test("rule 16: one of several remote writers leaves: the others still count", async (t) => {
  const lives = await Lives.create(t, chunkBytes);
  const volume = await lives.open();
  const first = await volume.attach(remote);
  await volume.attach(remote);
  first.release(true);
  await new Promise((resolve) => setTimeout(resolve, 20));
  await losePower(lives, volume);
  assert.equal((await lives.open()).info().state, "lostUnflushed");
});

void test("rule 16: that remote writers are connected is durable before the first of them is let in", async (t) => {
  const lives = await Lives.create(t, chunkBytes);
  const volume = await lives.open();
  await volume.checkpoint();
  lives.faulty.before = failing("ENOSPC", (call) => call.name === "write" && !ofHead(call));
  await assert.rejects(volume.attach(remote), { errno: "ENOSPC" });
  assert.equal(volume.info().connections.length, 0);
  lives.faulty.before = () => undefined;
  const sync = holdOnce(lives.faulty, (call) => call.name === "datasync" && ofLog(call));
  let attached = false;
  const attaching = volume.attach(remote).then(() => (attached = true));
  await sync.reached;
  await new Promise(setImmediate);
  assert.equal(attached, false);
  sync.open();
  await attaching;
  await lives.kill();
  pretendPowerCut(lives.env, lives.id);
  assert.equal((await lives.open()).info().state, "lostUnflushed");
});

void test("rule 16: the settings `serve` and sync=always let remote writers back in after a power cut", async (t) => {
  for (const change of [{ remoteAfterPowerLoss: "serve" }, { sync: "always" }] as const) {
    const lives = await Lives.create(t, chunkBytes, {}, settings(change));
    const volume = await lives.open();
    const { lineage } = volume;
    await volume.attach(remote);
    await losePower(lives, volume);
    const next = await lives.open();
    assert.equal(next.info().state, "ok");
    assert.notEqual(next.lineage, lineage);
    await next.attach(remote);
    const second = "sync" in change ? 2 : 0;
    await expectFilled(next, blockBytes, blockBytes, second);
  }
});

void test("rule 16: after a kill nothing is lost, so nobody is refused and the lineage stays", async (t) => {
  const lives = await Lives.create(t, chunkBytes);
  const volume = await lives.open();
  const { lineage } = volume;
  await volume.attach(remote);
  await write(volume, 0, filled(1));
  const next = await lives.open();
  assert.equal(next.lineage, lineage);
  await next.attach(remote);
  await next.close();
  assert.equal((await lives.open()).lineage, lineage);
});

void test("rule 16: a poisoned volume refuses new writers, and still lets readers in", async (t) => {
  const lives = await Lives.create(t, chunkBytes);
  const volume = await lives.open();
  await write(volume, 0, filled(1));
  lives.faulty.before = failing("EIO", (call) => call.name === "datasync" && ofHead(call), 1);
  await assert.rejects(volume.flush());
  await assert.rejects(volume.attach(client()), { code: "poisoned" });
  await volume.attach(client({ writable: false }));
});
