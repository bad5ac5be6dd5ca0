import assert from "node:assert/strict";
import { closeSync, openSync, readdirSync, readFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { headerBytes } from "../../src/volume/header.ts";
import { layersDir } from "../../src/volume/paths.ts";
import {
  blockBytes,
  chunkBytes,
  expectFilled,
  filled,
  newestLog,
  pretendRemount,
  temporaryDirectory,
  write,
} from "../support/volume-env.ts";
import { Lives } from "./lives.ts";

/** Blocks that a killed life wrote and did not claim (durability rule 7). */

const place = 2 * blockBytes;
/** Where a log's header has its flags (docs/FORMAT.md). */
const flagsAt = 84;

const straysNoted = (lives: Lives): boolean => (readFileSync(newestLog(lives.env, lives.id))[flagsAt] & 1) === 1;

/** A volume whose first life was killed between writing `value` to a block and claiming it. */
async function withStray(t: TestContext, value: number): Promise<Lives> {
  const lives = await Lives.create(t, chunkBytes, { dataDir: temporaryDirectory(t) });
  const volume = await lives.open();
  await write(volume, 0, filled(1));
  await volume.flush();
  await volume.checkpoint();
  lives.faulty.before = ({ name, path }) => {
    if (name === "write" && path.includes("intent")) void lives.kill();
    return undefined;
  };
  await assert.rejects(write(volume, place, filled(value)));
  return lives;
}

/** As if the block's newest bytes had been in the page cache alone when that was lost. */
function putBack(lives: Lives, value: number): void {
  const [layer] = readdirSync(layersDir(lives.env.dataDir));
  const file = openSync(join(layersDir(lives.env.dataDir), layer), "r+");
  writeSync(file, filled(value), 0, blockBytes, headerBytes + place);
  closeSync(file);
}

void test("rule 7: while strays may be left, having data proves nothing: the last flush counts when the page cache is lost", async (t) => {
  const lives = await withStray(t, 3);
  const second = await lives.open(({ name }) => (name === "punch" ? new Promise(() => undefined) : undefined));
  assert.ok(straysNoted(lives), "the log that the second life began says so");
  await write(second, place, filled(4));
  await lives.kill();
  pretendRemount(lives.env, lives.id);
  putBack(lives, 3);
  const third = await lives.open();
  await expectFilled(third, place, blockBytes, 0);
  await expectFilled(third, 0, blockBytes, 1);
  assert.equal(third.info().state, "lostUnflushed");
});

void test("rule 7: once strays are swept, a container's restart costs nothing again", async (t) => {
  const lives = await withStray(t, 3);
  const second = await lives.open();
  while (straysNoted(lives)) await second.checkpoint();
  await write(second, place, filled(4));
  await lives.kill();
  pretendRemount(lives.env, lives.id);
  const third = await lives.open();
  await expectFilled(third, place, blockBytes, 4);
  assert.equal(third.info().state, "ok");
});
