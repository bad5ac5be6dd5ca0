import assert from "node:assert/strict";
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { IoError } from "../../src/base/errors.ts";
import { volumeDir } from "../../src/volume/paths.ts";
import {
  blockBytes,
  chunkBytes,
  expectFilled,
  filled,
  mapNumbers,
  openDescriptors,
  pretendPowerCut,
  write,
} from "../support/volume-env.ts";
import { type Call, ofHead, ofLog, ofMap } from "./faulty-file-system.ts";
import { changes, Lives } from "./lives.ts";

/** A volume that was closed with 1 in its first block, not opened since. */
async function closed(t: TestContext): Promise<Lives> {
  const lives = await Lives.create(t, 4 * chunkBytes);
  const volume = await lives.open();
  await write(volume, 0, filled(1));
  await volume.close();
  return lives;
}

function contents(lives: Lives): Record<string, string> {
  const dir = volumeDir(lives.env.dataDir, lives.id);
  return Object.fromEntries(readdirSync(dir).map((name) => [name, readFileSync(join(dir, name), "hex")]));
}

void test("a life in which nothing is written makes no checkpoint and leaves the volume's files as they were", async (t) => {
  const lives = await closed(t);
  const before = contents(lives);
  for (let life = 0; life < 3; life++) {
    const calls: Call[] = [];
    const volume = await lives.open((call) => void calls.push(call));
    await expectFilled(volume, 0, blockBytes, 1);
    const writer = await volume.attach({
      protocol: "nbd",
      address: "unix",
      remote: false,
      writable: true,
      close: () => undefined,
    });
    await volume.flush();
    writer.release(true);
    await volume.close();
    assert.deepEqual(contents(lives), before);
    assert.equal(calls.filter((call) => call.name === "write" && ofMap(call)).length, 0, "no map was written");
    assert.deepEqual(openDescriptors(lives.env.dataDir), []);
  }
  pretendPowerCut(lives.env, lives.id); // the machine restarts
  const next = await lives.open();
  assert.equal(next.info().state, "ok");
  await expectFilled(next, 0, blockBytes, 1);
  await next.close();
});

void test("one record is enough for a checkpoint at the end", async (t) => {
  const lives = await closed(t);
  const [number] = mapNumbers(lives.env, lives.id);
  const volume = await lives.open();
  await volume.trim(0, blockBytes);
  await volume.close();
  assert.ok(mapNumbers(lives.env, lives.id)[0] > number);
  pretendPowerCut(lives.env, lives.id);
  const next = await lives.open();
  await expectFilled(next, 0, blockBytes, 0);
  await next.close();
});

void test("rule 22: the zeros written ahead in a log are not written to the disk at the end, and it still takes its last records", async (t) => {
  const lives = await closed(t);
  const volume = await lives.open();
  const writer = await volume.attach({
    protocol: "nbd",
    address: "unix",
    remote: false,
    writable: true,
    close: () => undefined,
  });
  await volume.trim(0, blockBytes);
  writer.release(true);
  const synced: number[] = [];
  lives.faulty.before = (call) => {
    if (call.name === "datasync" && ofLog(call)) synced.push(statSync(call.path).size);
    // Nothing that would need space may be written to the old log.
    if (call.name === "write" && ofLog(call) && call.length > 4096) throw new IoError("ENOSPC", "the disk is full");
    return undefined;
  };
  await volume.close();
  assert.ok(synced.length >= 2 && synced.every((bytes) => bytes <= 4 * blockBytes), synced.join());
  const next = await lives.open();
  await expectFilled(next, 0, blockBytes, 0);
  await next.close();
});

void test("what was overwritten in place is synced before its life's log goes, and nothing is suspected afterwards", async (t) => {
  const lives = await closed(t);
  const volume = await lives.open();
  const { lineage } = volume;
  await write(volume, 0, filled(2));
  const order: string[] = [];
  lives.faulty.after = (call) => {
    if (call.name === "datasync" && ofHead(call)) order.push("head synced");
    if (call.name === "unlink" && ofLog(call)) order.push("log gone");
  };
  await volume.close();
  assert.deepEqual(order, ["head synced", "log gone"]);
  pretendPowerCut(lives.env, lives.id);
  const next = await lives.open();
  assert.equal(next.lineage, lineage);
  await expectFilled(next, 0, blockBytes, 2);
  await next.close();
});

void test("rule 2: a kill or a power cut in front of each step of opening and closing such a volume harms nothing", async (t) => {
  for (const cut of [false, true]) {
    let steps = 1;
    for (let step = 1; step <= steps; step++) {
      const lives = await closed(t);
      let calls = 0;
      const died = Promise.withResolvers<void>();
      const life = lives
        .open((call) => {
          if (!changes(call) || ++calls !== step || step === steps) return;
          void lives.kill();
          died.resolve();
        })
        .then((volume) => volume.close());
      if (step === 1) {
        await life.catch(() => undefined);
        steps = 100; // until one life gets through
      } else await Promise.race([life.catch(() => undefined), died.promise]);
      if (calls < step) steps = step;
      if (cut) pretendPowerCut(lives.env, lives.id);
      const next = await lives.open();
      await expectFilled(next, 0, blockBytes, 1);
      assert.equal(next.info().state, "ok", `step ${step}`);
      await write(next, blockBytes, filled(7));
      await next.flush();
      await lives.kill();
      if (cut) pretendPowerCut(lives.env, lives.id);
      const last = await lives.open();
      await expectFilled(last, blockBytes, blockBytes, 7);
    }
  }
});

void test("rule 7: what was written to a volume that had been closed clean outlives kills, and power cuts once it is flushed", async (t) => {
  const lives = await closed(t);
  const volume = await lives.open();
  await write(volume, blockBytes, filled(2));
  await volume.flush();
  await write(volume, 2 * blockBytes, filled(3));
  await lives.kill();
  const second = await lives.open();
  for (const [block, value] of [1, 2, 3].entries()) await expectFilled(second, block * blockBytes, blockBytes, value);
  await lives.kill();
  pretendPowerCut(lives.env, lives.id);
  const third = await lives.open();
  for (const [block, value] of [1, 2].entries()) await expectFilled(third, block * blockBytes, blockBytes, value);
});
