import assert from "node:assert/strict";
import { readdirSync, readFileSync, statSync, unlinkSync, writeFileSync } from "node:fs";
import { test } from "node:test";
import { CorruptionError } from "../../src/base/errors.ts";
import { logPath, mapPath, volumeDir } from "../../src/volume/paths.ts";
import type { Volume } from "../../src/volume/volume.ts";
import {
  blockBytes,
  chunkBytes,
  expectFilled,
  filled,
  logNumbers,
  mapNumbers,
  openDescriptors,
  pretendPowerCut,
  pretendRemount,
  write,
} from "../support/volume-env.ts";
import { type Call, failing, FaultyFileSystem, gate, ofHead, ofLog, ofMap, until } from "./faulty-file-system.ts";
import { BlockModel, changes, Lives } from "./lives.ts";

const blocks = 16;
const newMap = (call: Call): boolean => ofMap(call) && call.name === "write";

/** Fills blocks; the model hears of it. */
async function put(volume: Volume, model: BlockModel, block: number, value: number): Promise<void> {
  model.tried(block, value);
  await write(volume, block * blockBytes, filled(value));
  model.answered(block, value);
}

async function trim(volume: Volume, model: BlockModel, block: number): Promise<void> {
  model.tried(block, 0);
  await volume.trim(block * blockBytes, blockBytes);
  model.answered(block, 0);
}

/** Flushed and unflushed blocks, overwritten ones and trimmed ones. */
async function prepare(volume: Volume, model: BlockModel): Promise<void> {
  for (let block = 0; block < 6; block++) await put(volume, model, block, 10 + block);
  await volume.flush();
  await trim(volume, model, 1);
  await put(volume, model, 2, 20);
  await put(volume, model, 6, 21);
}

/** How many calls that change something `work` makes. */
async function countChanges(faulty: FaultyFileSystem, work: () => Promise<unknown>): Promise<number> {
  let count = 0;
  faulty.after = (call) => void (count += changes(call) ? 1 : 0);
  await work();
  faulty.after = () => undefined;
  return count;
}

void test("rule 10: killed in front of each step of a checkpoint, the next start finds everything", async (t) => {
  let steps = 1;
  for (let step = 1; step <= steps; step++) {
    const lives = await Lives.create(t, 4 * chunkBytes);
    const volume = await lives.open();
    const model = new BlockModel(blocks);
    await volume.checkpoint();
    await prepare(volume, model);
    if (step === 1) {
      steps = await countChanges(lives.faulty, () => volume.checkpoint());
      assert.ok(steps > 10, `${steps} steps`);
      continue;
    }
    const killed = lives.killAt(step);
    volume.checkpoint().catch(() => undefined);
    await killed;
    const next = await lives.open();
    await model.verify(next, `step ${step}`);
    // The start before this one is killed while its own checkpoint can't be written; nothing may depend on it.
    const again = await lives.open(failing("ENOSPC", newMap));
    await put(again, model, 7, 22);
    await put(again, model, 0, 23);
    await again.flush();
    await put(again, model, 8, 24);
    await model.verify(await lives.open(), `step ${step}, two lives later`);
  }
});

void test("rules 2 and 10: power cuts in front of each step of a checkpoint lose nothing that was flushed", async (t) => {
  let steps = 1;
  for (let step = 1; step <= steps; step++) {
    const lives = await Lives.create(t, 4 * chunkBytes);
    const volume = await lives.open();
    await volume.checkpoint();
    await prepare(volume, new BlockModel(blocks));
    if (step === 1) {
      steps = await countChanges(lives.faulty, () => volume.checkpoint());
      continue;
    }
    const killed = lives.killAt(step);
    volume.checkpoint().catch(() => undefined);
    await killed;
    pretendPowerCut(lives.env, lives.id);
    const model = new BlockModel(blocks);
    for (const [block, values] of Object.entries({
      0: [10],
      1: [11, 0],
      2: [12, 20],
      3: [13],
      4: [14],
      5: [15],
      6: [0, 21],
    })) {
      model.answered(Number(block), values[0]);
      for (const value of values.slice(1)) model.tried(Number(block), value);
    }
    const next = await lives.open();
    await model.verify(next, `step ${step}`);
    await put(next, model, 6, 33);
    await next.flush();
    await lives.kill();
    pretendPowerCut(lives.env, lives.id);
    await model.verify(await lives.open(), `step ${step}, the life after it`);
  }
});

void test("rule 2: killed in front of each step of a recovery, the next start finds everything", async (t) => {
  for (const pretend of [undefined, pretendRemount, pretendPowerCut]) {
    let steps = 1;
    for (let step = 1; step <= steps; step++) {
      const lives = await Lives.create(t, 4 * chunkBytes);
      const volume = await lives.open();
      const model = new BlockModel(blocks);
      await prepare(volume, model);
      await volume.flush();
      await lives.kill();
      pretend?.(lives.env, lives.id);
      let seen = 0;
      let volumeOpened: Volume | undefined;
      const dying = gate();
      const opening = lives.open((call) => {
        if (!changes(call)) return undefined;
        seen++;
        if (seen === step && step > 1) {
          void lives.kill();
          dying.open();
        }
        return undefined;
      });
      if (step === 1) {
        volumeOpened = await opening;
        await volumeOpened.close();
        steps = seen;
        assert.ok(steps > 5, `${steps} steps`);
        continue;
      }
      const closed = opening.then((opened) => opened.close()).catch(() => undefined);
      await Promise.race([dying.opened, closed]);
      pretend?.(lives.env, lives.id);
      const again = await lives.open(failing("ENOSPC", (call) => newMap(call) && pretend === undefined));
      await model.verify(again, `${pretend?.name ?? "kill"}, step ${step}`);
      await put(again, model, 7, 40);
      await again.flush();
      await model.verify(await lives.open(), `${pretend?.name ?? "kill"}, step ${step}, the life after`);
    }
  }
});

void test("rule 2: what a power cut dropped does not come back in a later life", async (t) => {
  const lives = await Lives.create(t, 4 * chunkBytes);
  const first = await lives.open();
  await write(first, 0, filled(1));
  await first.flush();
  await write(first, blockBytes, filled(2)); // dropped by the power cut
  await lives.kill();
  pretendPowerCut(lives.env, lives.id);
  const second = await lives.open();
  await expectFilled(second, blockBytes, blockBytes, 0);
  for (let n = 2; n < 40; n++) await write(second, n * blockBytes, filled(3));
  await second.flush();
  await expectFilled(await lives.open(), blockBytes, blockBytes, 0);
  await lives.kill();
  pretendPowerCut(lives.env, lives.id);
  const fourth = await lives.open();
  await expectFilled(fourth, 0, blockBytes, 1);
  await expectFilled(fourth, blockBytes, blockBytes, 0);
  await expectFilled(fourth, 2 * blockBytes, 38 * blockBytes, 3);
});

void test("rule 2: recovery never appends to a log that it found", async (t) => {
  const lives = await Lives.create(t, 4 * chunkBytes);
  const first = await lives.open();
  await write(first, 0, filled(1));
  const found = logNumbers(lives.env, lives.id).at(-1)!;
  const path = logPath(volumeDir(lives.env.dataDir, lives.id), found);
  const before = statSync(path);
  const second = await lives.open(failing("ENOSPC", newMap)); // keeps the old log
  await write(second, blockBytes, filled(2));
  await second.flush();
  const after = statSync(path);
  assert.deepEqual([after.size, after.mtimeMs], [before.size, before.mtimeMs]);
  assert.ok(logNumbers(lives.env, lives.id).at(-1)! > found);
});

void test("rule 10: the next log is durable before the old one ends, and it commits only after the old one is synced", async (t) => {
  const lives = await Lives.create(t, 4 * chunkBytes);
  const volume = await lives.open();
  await volume.checkpoint();
  const [old] = logNumbers(lives.env, lives.id);
  await write(volume, 0, filled(1));
  const events: string[] = [];
  lives.faulty.after = (call: Call) => {
    const log = ofLog(call) ? (call.path.endsWith(`.${old}`) ? "old log" : "new log") : undefined;
    const what = log ?? (ofHead(call) ? "head" : ofMap(call) ? "map" : "directory");
    if (call.name !== "read" && events.at(-1) !== `${call.name} ${what}`) events.push(`${call.name} ${what}`);
  };
  await volume.checkpoint();
  const order = (...names: string[]): void => {
    const at = names.map((name) => events.lastIndexOf(name));
    assert.ok(
      !at.includes(-1) && at.every((place, n) => n === 0 || at[n - 1] < place),
      `${String(names)} in ${String(events)}`,
    );
  };
  const created = events.slice(0, events.indexOf("write old log"));
  assert.deepEqual(created.slice(0, 2), ["open new log", "write new log"]);
  assert.deepEqual(created.slice(2, 4).sort(), ["datasync new log", "syncDirectory directory"]); // at the same time
  const commit = events.lastIndexOf("write new log");
  assert.ok(events.indexOf("datasync head") < commit && events.indexOf("datasync old log") < commit, String(events));
  order("write old log", "datasync old log", "write map", "datasync map", "rename map", "unlink map");
  order("rename map", "unlink old log");
  assert.ok(events.lastIndexOf("syncDirectory directory") < events.lastIndexOf("unlink map"), String(events));
});

void test("rule 10: a checkpoint that fails changes nothing and can be tried again", async (t) => {
  const cases: [string, (call: Call) => boolean][] = [
    ["creating the log", (call) => call.name === "open" && ofLog(call)],
    ["the log's header", (call) => call.name === "write" && ofLog(call) && call.offset === 0],
    ["the end record", (call) => call.name === "write" && ofLog(call) && call.length === 40],
    ["the map", (call) => call.name === "write" && ofMap(call)],
    ["the map's sync", (call) => call.name === "datasync" && ofMap(call)],
    ["the rename", (call) => call.name === "rename"],
  ];
  for (const [what, matches] of cases) {
    const lives = await Lives.create(t, 4 * chunkBytes);
    const volume = await lives.open();
    const model = new BlockModel(blocks);
    await volume.checkpoint();
    await prepare(volume, model);
    lives.faulty.before = failing("ENOSPC", matches, 1);
    await assert.rejects(volume.checkpoint(), { errno: "ENOSPC" }, what);
    assert.equal(volume.info().state, "ok", what);
    await put(volume, model, 9, 50);
    await volume.flush();
    await model.verify(volume, what);
    const second = await lives.open();
    await model.verify(second, `${what}: the next life`);
    await put(second, model, 10, 51);
    await second.checkpoint();
    await second.checkpoint();
    assert.equal(logNumbers(lives.env, lives.id).length, 1, what);
    assert.equal(mapNumbers(lives.env, lives.id).length, 1, what);
    await second.close();
    assert.deepEqual(openDescriptors(lives.env.dataDir), [], `${what}: no descriptor stays open`);
  }
});

void test("rule 10: writes go on while the map of a checkpoint is written, and are not in it", async (t) => {
  const lives = await Lives.create(t, 4 * chunkBytes);
  const volume = await lives.open();
  const model = new BlockModel(blocks);
  await prepare(volume, model);
  const held = gate();
  const reached = gate();
  lives.faulty.before = (call) => {
    if (call.name !== "open" || !ofMap(call)) return undefined;
    reached.open();
    return held.opened;
  };
  const done = volume.checkpoint();
  await reached.opened;
  await put(volume, model, 11, 60);
  await volume.flush();
  await put(volume, model, 12, 61);
  held.open();
  await done;
  lives.faulty.before = () => undefined;
  await model.verify(await lives.open(), "after the kill");
});

void test("rule 10: a log that is missing between checkpoint and commit is refused, never skipped", async (t) => {
  const lives = await Lives.create(t, 4 * chunkBytes);
  const volume = await lives.open();
  await write(volume, 0, filled(1));
  lives.faulty.before = failing("ENOSPC", newMap); // checkpoints rotate the log but write no map
  for (let n = 1; n < 4; n++) {
    await write(volume, n * blockBytes, filled(1));
    await assert.rejects(volume.checkpoint());
  }
  await volume.flush();
  const dir = volumeDir(lives.env.dataDir, lives.id);
  const numbers = logNumbers(lives.env, lives.id);
  assert.ok(numbers.length >= 4, String(numbers));
  await lives.kill();
  for (const missing of [numbers[0], numbers[1], numbers[2]]) {
    const path = logPath(dir, missing);
    const bytes = readFileSync(path);
    unlinkSync(path);
    await assert.rejects(lives.open(), CorruptionError, `intent.${missing}`);
    writeFileSync(path, bytes);
    pretendPowerCut(lives.env, lives.id); // the file is another one now
  }
  await expectFilled(await lives.open(), 0, 4 * blockBytes, 1);
});

void test("rule 10: a damaged checkpoint whose logs are gone is refused", async (t) => {
  const lives = await Lives.create(t, 4 * chunkBytes);
  const volume = await lives.open();
  await write(volume, 0, filled(1));
  await volume.close();
  const dir = volumeDir(lives.env.dataDir, lives.id);
  const [number] = mapNumbers(lives.env, lives.id);
  writeFileSync(mapPath(dir, number), Buffer.alloc(8192, 1));
  await assert.rejects(lives.open(), CorruptionError);
  assert.deepEqual(openDescriptors(lives.env.dataDir), []);
});

void test("temporary files of a checkpoint that was cut off are removed at the next start", async (t) => {
  const lives = await Lives.create(t, 4 * chunkBytes);
  const dir = volumeDir(lives.env.dataDir, lives.id);
  writeFileSync(`${mapPath(dir, 9)}.tmp`, "half a map");
  const volume = await lives.open();
  assert.deepEqual(
    readdirSync(dir).filter((name) => name.endsWith(".tmp")),
    [],
  );
  await volume.close();
});

void test("rule 35: after a kill the volume serves while what it replayed is synced; no commit and no removal before", async (t) => {
  const lives = await Lives.create(t, 4 * chunkBytes);
  const first = await lives.open();
  await first.checkpoint(); // so that the kill leaves nothing half made
  await write(first, 0, filled(1));
  const old = logNumbers(lives.env, lives.id);
  const held = gate();
  let released = false;
  const early: string[] = [];
  const volume = await lives.open((call) => {
    if (call.name === "datasync" && (ofHead(call) || old.some((n) => call.path.endsWith(`intent.${n}`))))
      return held.opened;
    const commits = ofLog(call) && call.name === "write" && call.length === 40 && !call.now;
    if (!released && (commits || call.name === "unlink" || call.name === "rename"))
      early.push(`${call.name} ${call.path}`);
    return undefined;
  });
  await expectFilled(volume, 0, blockBytes, 1);
  await write(volume, blockBytes, filled(2));
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.deepEqual(early, []);
  assert.deepEqual(
    old.filter((number) => !logNumbers(lives.env, lives.id).includes(number)),
    [],
  );
  released = true;
  held.open();
  await until(() => logNumbers(lives.env, lives.id).length === 1);
});

void test("rule 35: when that sync fails, the volume is poisoned", async (t) => {
  const lives = await Lives.create(t, 4 * chunkBytes);
  const first = await lives.open();
  await write(first, 0, filled(1));
  const volume = await lives.open(failing("EIO", (call) => call.name === "datasync" && ofHead(call)));
  await until(() => volume.info().state === "poisoned");
  await assert.rejects(write(volume, 0, filled(2)), { errno: "EIO" });
});

void test("a clean close leaves one checkpoint, no loss to suspect, and no descriptor", async (t) => {
  const lives = await Lives.create(t, 4 * chunkBytes);
  const volume = await lives.open();
  await write(volume, 0, filled(1));
  const { lineage } = volume;
  await volume.close();
  assert.equal(mapNumbers(lives.env, lives.id).length, 1);
  assert.deepEqual(openDescriptors(lives.env.dataDir), []);
  pretendPowerCut(lives.env, lives.id); // the machine restarts
  const next = await lives.open();
  assert.equal(next.lineage, lineage);
  await expectFilled(next, 0, blockBytes, 1);
  await next.close();
});
