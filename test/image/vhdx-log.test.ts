import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { copyFileSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { crc32c } from "../../src/base/crc32c.ts";
import type { ImageReader } from "../../src/image/image-format.ts";
import { PatchedReader } from "../../src/image/patched-reader.ts";
import { readBytes } from "../../src/image/read-bytes.ts";
import { requireTool } from "../support/tools.ts";
import { type LogEntry, sumEntry, tableOf, writeLog } from "./vhdx-entries.ts";
import { differs, fileReader, makeDisk, openFile, run, temporaryDirectory } from "./support.ts";

const KIB = 1024;
const MIB = 1024 * KIB;

function makeImage(t: TestContext): { dir: string; image: string } {
  const dir = temporaryDirectory(t);
  const [raw, image] = ["raw", "image"].map((name) => join(dir, name));
  makeDisk(raw, 40 * MIB);
  run("qemu-img", "convert", "-f", "raw", "-O", "vhdx", "-o", "block_size=1M", raw, image);
  return { dir, image };
}

/** The header that counts, if it names a log. */
function headerOf(image: Buffer): number | undefined {
  const sequence = (at: number): bigint => image.readBigUInt64LE(at + 8);
  const valid = [64 * KIB, 128 * KIB].filter((at) => {
    const copy = Buffer.from(image.subarray(at, at + 4096));
    copy.writeUInt32LE(0, 4);
    return crc32c(copy, 0, 4096) === image.readUInt32LE(at + 4);
  });
  const newest = valid.sort((a, b) => Number(sequence(b) - sequence(a)))[0];
  return image.subarray(newest + 48, newest + 64).some((byte) => byte !== 0) ? newest : undefined;
}

/** Reads it, and what qemu-img makes of it when it may repair it; both must be the same. The image stays as it is. */
async function demandSame(dir: string, image: string): Promise<ImageReader> {
  const before = readFileSync(image);
  const [repaired, raw] = ["repaired", "repaired-raw"].map((name) => join(dir, name));
  copyFileSync(image, repaired);
  run("qemu-img", "check", "-r", "all", "-f", "vhdx", repaired);
  run("qemu-img", "convert", "-f", "vhdx", "-O", "raw", repaired, raw);
  const { reader, format } = await openFile(image);
  assert.equal(format, "vhdx");
  assert.equal(await differs(reader, raw), undefined);
  assert.ok(readFileSync(image).equals(before));
  return reader;
}

void test("a vhdx whose writer was killed at any of its writes reads as qemu-img reads it after a repair", async (t) => {
  if (!requireTool(t, "qemu-img", "qemu-io", "strace")) return;
  const { dir, image } = makeImage(t);
  const killed = join(dir, "killed");
  let logs = 0;
  for (const call of ["pwrite64", "fdatasync"]) {
    for (let when = 1; when <= 12; when++) {
      copyFileSync(image, killed);
      const inject = `inject=${call}:signal=KILL:when=${when}`; // of each thread
      const writes = ["-c", "write -P 0x11 20M 2M", "-c", "write -P 0x22 30M 1500k"];
      const traced = ["-f", "-o", "/dev/null", "-e", `trace=${call}`, "-e", inject, "qemu-io", "-f", "vhdx", ...writes];
      spawnSync("strace", [...traced, killed], { timeout: 60_000 });
      if (headerOf(readFileSync(killed)) !== undefined) logs++;
      await demandSame(dir, killed);
    }
  }
  assert.ok(logs > 2, `${logs} had a log`);
});

void test("of a vhdx's log the newest run of entries counts, from the tail that the last one names, around the log's end", async (t) => {
  if (!requireTool(t, "qemu-img")) return;
  const { dir, image } = makeImage(t);
  const good = readFileSync(image);
  const table = tableOf(good);
  const sector = Buffer.from(good.subarray(table, table + 4096));
  const swapped = Buffer.from(sector); // blocks 0 and 1 of the disk change their places
  sector.copy(swapped, 0, 8, 16);
  sector.copy(swapped, 8, 0, 8);
  const lost = Buffer.alloc(4096);
  const log = MIB;
  const cases: { name: string; at: number; entries: (at: number) => LogEntry[] }[] = [
    { name: "one", at: 0, entries: (at) => [{ tail: at, data: [{ to: table, bytes: swapped }], sequence: 5 }] },
    {
      name: "the last of three, whose first is behind the tail",
      at: log - 2 * 8192,
      entries: (at) => [
        { tail: at, data: [{ to: table, bytes: lost }], sequence: 5 },
        { tail: at, data: [{ to: table, bytes: lost }], sequence: 6 },
        { tail: 0, data: [{ to: table, bytes: swapped }], sequence: 7 },
      ],
    },
    {
      name: "an entry that goes around the end",
      at: log - 4096,
      entries: (at) => [
        { tail: at, data: [{ to: table, bytes: lost }], sequence: 8 },
        { tail: at, data: [{ to: table, bytes: swapped }], sequence: 9 },
      ],
    },
    {
      name: "zeros, and behind them data",
      at: 0,
      entries: (at) => [
        { tail: at, data: [], zeros: [{ to: table, length: 8192 }], sequence: 1 },
        { tail: at, data: [{ to: table, bytes: swapped }], sequence: 2 },
      ],
    },
  ];
  for (const { name, at, entries } of cases) {
    const dirty = Buffer.from(good);
    writeLog(dirty, at, entries(at));
    writeFileSync(image, dirty);
    const reader = await demandSame(dir, image);
    assert.match((await readBytes(reader, MIB, 50)).toString(), /disk/, name);
  }
  const dirty = Buffer.from(good);
  writeLog(dirty, 0, [{ tail: 0, data: [{ to: table, bytes: lost }], sequence: 3 }]);
  writeLog(dirty, 64 * KIB, [{ tail: 64 * KIB, data: [{ to: table, bytes: swapped }], sequence: 4 }]);
  writeLog(dirty, 128 * KIB, [{ tail: 0, data: [{ to: table, bytes: lost }], sequence: 5 }]); // reaches back to none of its own
  writeFileSync(image, dirty);
  const { reader } = await openFile(image);
  assert.match((await readBytes(reader, MIB, 50)).toString(), /disk/);
});

void test("a vhdx whose log does not fit together is refused with what to do", async (t) => {
  if (!requireTool(t, "qemu-img")) return;
  const { image } = makeImage(t);
  const good = readFileSync(image);
  const table = tableOf(good);
  const data = [{ to: table, bytes: Buffer.from(good.subarray(table, table + 4096)) }];
  const refused = async (change: (dirty: Buffer, log: number) => void, message: RegExp): Promise<void> => {
    const dirty = Buffer.from(good);
    writeLog(dirty, 0, [{ tail: 0, data, sequence: 5 }]);
    change(dirty, MIB);
    writeFileSync(image, dirty);
    await assert.rejects(openFile(image), (error: Error & { code: string; hint: string }) => {
      assert.match(`${error.code}: ${error.message}`, message);
      assert.match(error.hint, /qemu-img check/);
      return true;
    });
  };
  await refused((dirty, log) => {
    dirty.write("dat_", log + 4096);
    sumEntry(dirty, log);
  }, /image-damaged: .*a sector that is not its own/);
  await refused((dirty, log) => {
    dirty.writeBigUInt64LE(BigInt(good.length * 2), log + 48);
    sumEntry(dirty, log);
  }, /image-damaged: .*when its log was written/);
  await refused((dirty, log) => {
    dirty.writeUInt32LE(0x7fffffff, log + 24);
    sumEntry(dirty, log);
  }, /image-damaged: .*descriptors/);
  await refused((dirty) => {
    for (const header of [64 * KIB, 128 * KIB]) {
      dirty.writeUInt32LE(64 * MIB, header + 68);
      dirty.writeUInt32LE(0, header + 4);
      dirty.writeUInt32LE(crc32c(dirty, header, header + 4096), header + 4);
    }
  }, /image-damaged: .*outside/);
});

void test("bytes that were changed in memory are read in the place of the file's, in any order of writes", async (t) => {
  const dir = temporaryDirectory(t);
  const raw = join(dir, "raw");
  makeDisk(raw, 100_000);
  const expected = Buffer.concat([readFileSync(raw), Buffer.alloc(50_000)]);
  const patched = new PatchedReader(await fileReader(raw));
  patched.extend(150_000);
  for (const [offset, length, value] of [
    [10_000, 5000, 1],
    [20_000, 5000, 2],
    [12_000, 10_000, 3],
    [13_000, 10, 4],
    [0, 1, 5],
    [99_990, 30_000, 6],
    [105_000, 10, 0],
    [140_000, 10_000, 7],
    [24_999, 1, 8],
  ]) {
    expected.fill(value, offset, offset + length);
    patched.write(offset, length, value === 0 ? undefined : Buffer.alloc(length, value));
  }
  assert.equal(patched.size, 150_000);
  for (const step of [150_000, 7777, 499]) {
    for (let at = 0; at < patched.size; at += step) {
      const length = Math.min(step, patched.size - at);
      assert.ok((await readBytes(patched, at, length)).equals(expected.subarray(at, at + length)), `${at}+${length}`);
    }
  }
});
