import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { temporaryDirectory } from "../daemon/support.ts";
import { crc32c, Damaged } from "./reader-bytes.ts";
import { NotFetched } from "./reader-owners.ts";
import { readVolume, type ReadOptions } from "./reader.ts";

/** The files of the worked example in docs/FORMAT.md, rebuilt from its hex dumps: they are what the text says. */

const document = readFileSync(join(import.meta.dirname, "../../docs/FORMAT.md"), "utf8");
const volumeId = "a1".repeat(16);
const layerId = "a2".repeat(16);
const blobId = "a0".repeat(16);
const frozenId = "a4".repeat(16);
const cloneId = "a6".repeat(16);
const snapshotId = "ab".repeat(16);

/** The bytes of the dump whose first line begins with `title`: hex digits behind an offset, `…` repeated, then words. */
function dump(title: string, length: number): Buffer {
  const block = new RegExp(`\`\`\`\n${title.replaceAll(".", "\\.")}.*\n([^\`]*)`).exec(document);
  assert.ok(block, `docs/FORMAT.md has no dump of ${title}`);
  const file = Buffer.alloc(length);
  for (const line of block[1].trim().split("\n")) {
    const [, offset, rest] = /^([0-9a-f]+) {2}(.*)$/.exec(line)!;
    const digits = rest.replace(/((?:[0-9a-f]{2} )+)(?:… )?(?:\d+ x ([0-9a-f]{2})|x (\d+))/, expand);
    const bytes = /^([0-9a-f]{2}( {1,2}|$))*/.exec(digits)![0];
    Buffer.from(bytes.replaceAll(" ", ""), "hex").copy(file, parseInt(offset, 16));
  }
  return file;
}

/** `a1 x 16`, and `00 00 a2 a2 … 16 x a2`: the last byte, that often. */
function expand(whole: string, before: string, last: string | undefined, times: string | undefined): string {
  if (times !== undefined) return before.repeat(Number(times)).trimEnd();
  const fixed = before.trim().split(" ");
  while (fixed.at(-1) === last) fixed.pop();
  return [...fixed, ...Array.from({ length: parseInt(whole.split("… ")[1]) }, () => last)].join(" ");
}

function meta(): string {
  const [, json] = /\n\S+ .*\n?.*(\["https:\/\/images\.example.*\])/.exec(document)!;
  const [url, imageFormat, size, version, strong] = JSON.parse(json) as [string, string, number, string, boolean];
  const identity = { size, version, strong };
  const fields = { url, imageFormat, identity, size, unitBytes: 4096, createdAt: "2026-01-01T00:00:00Z" };
  return JSON.stringify({ format: "ullage-blob", version: 1, id: blobId, ...fields });
}

/** The data directory that they make. */
class Example {
  readonly data: string;
  readonly directory: string;

  private constructor(data: string) {
    this.data = data;
    this.directory = join(data, "volumes", volumeId);
  }

  static async create(t: TestContext): Promise<Example> {
    const example = new Example(await temporaryDirectory(t));
    const blob = join(example.data, "blobs", blobId);
    for (const path of [example.directory, blob, join(example.data, "layers")]) mkdirSync(path, { recursive: true });
    example.write("map.3", dump("map.3", 0x1060));
    example.write("intent.3", dump("intent.3", 0x10f0));
    example.writeLayer(dump(`layers/${layerId}`, 8_396_800));
    writeFileSync(join(blob, "meta.json"), meta());
    writeFileSync(join(blob, "map"), dump(`blobs/${blobId}/map`, 0x65));
    writeFileSync(join(blob, "data"), Buffer.alloc(12_288, "blob"));
    return example;
  }

  /** A file of the volume. */
  write(name: string, bytes: Buffer): void {
    writeFileSync(join(this.directory, name), bytes);
  }

  file(name: string): Buffer {
    return readFileSync(join(this.directory, name));
  }

  /** Block b of the disk is full of b mod 251, but for what the dump shows. */
  writeLayer(header: Buffer): void {
    for (const block of [2, 1024, 1025, 1026, 1027]) header.fill(block % 251, 4096 * (block + 1), 4096 * (block + 2));
    header.fill(0x57, 0x2000, 0x3000);
    writeFileSync(join(this.data, "layers", layerId), header);
  }

  /** The second part of the example: a snapshot of the volume, and a clone that has a snapshot in its log only. */
  addClone(): void {
    const clone = join(this.data, "volumes", cloneId);
    for (const path of [clone, join(this.data, "maps")]) mkdirSync(path);
    writeFileSync(join(this.data, "maps", frozenId), dump(`maps/${frozenId}`, 0x107c));
    writeFileSync(join(clone, "map.1"), dump("map.1", 0x102c));
    const log = dump("intent.2", 0x10f0);
    writeFileSync(join(clone, "intent.2"), log);
    const first = Buffer.from(log.subarray(0, 4096));
    first.writeBigUInt64LE(1n, 72);
    first.writeUInt32LE(0, 80);
    writeFileSync(join(clone, "intent.1"), sealed(first));
    for (const [id, blocks, value] of [
      ["a9", 2050, 0x70],
      ["aa", 3073, 0x71],
    ] as const) {
      const layer = dump(`layers/${layerId}`, 8192);
      layer.fill(id, 16, 32, "hex");
      layer.fill(value, 4096);
      const path = join(this.data, "layers", id.repeat(16));
      writeFileSync(path, sealed(layer));
      truncateSync(path, 4096 * (1 + blocks));
    }
    const description = (id: string, name: string): string => JSON.stringify({ formatVersion: 1, id, name });
    writeFileSync(join(this.directory, `snapshot.${frozenId}.json`), description(frozenId, "frozen"));
    writeFileSync(join(clone, `snapshot.${snapshotId}.json`), description(snapshotId, "logged"));
  }

  /** Says that units 0 and 1 are ready, too. */
  fetchAll(): void {
    const path = join(this.data, "blobs", blobId, "map");
    const map = readFileSync(path);
    map[0x60] = 7;
    map.writeUInt32LE(crc32c(map.subarray(0, -4)), 0x61);
    writeFileSync(path, map);
  }

  /** As if it had been written here: the rule `all` may be used. */
  bindHere(): void {
    const log = this.file("intent.3");
    const { dev, ino } = statSync(join(this.directory, "intent.3"), { bigint: true });
    log.writeBigUInt64LE(dev, 96);
    log.writeBigUInt64LE(ino, 104);
    log.write(readFileSync("/proc/sys/kernel/random/boot_id", "latin1").trim(), 112, "latin1");
    this.write("intent.3", sealed(log));
  }

  read(options: ReadOptions = {}, wanted = volumeId, bytes = 8_389_120): Buffer {
    const disk = Buffer.alloc(bytes);
    const size = readVolume(this.data, wanted, (at, part) => part.copy(disk, at), { fullCopy: true, ...options });
    assert.equal(size, disk.length);
    return disk;
  }
}

/** With the checksum of its header corrected. */
function sealed(file: Buffer): Buffer {
  file.writeUInt32LE(0, 12);
  file.writeUInt32LE(crc32c(file.subarray(0, 4096)), 12);
  return file;
}

/** A record for intent.3, behind one with the checksum `link`. */
function record(link: number, lsn: number, type: number, a: number, b: number): Buffer {
  const bytes = Buffer.alloc(40);
  bytes.writeUInt32LE(link, 4);
  bytes.writeBigUInt64LE(BigInt(lsn), 8);
  bytes.writeUInt16LE(40, 16);
  bytes[18] = type;
  bytes.writeBigUInt64LE(BigInt(a), 24);
  bytes.writeBigUInt64LE(BigInt(b), 32);
  bytes.writeUInt32LE(crc32c(bytes.subarray(4), crc32c(Buffer.alloc(16, 0xa7))), 0);
  return bytes;
}

/** The disk that the text describes. */
function described(): Buffer {
  const disk = Buffer.alloc(8_389_120);
  Buffer.alloc(10_000, "blob").copy(disk);
  disk.fill(0x57, 4096, 8192);
  for (const block of [1024, 1026, 1027]) disk.fill(block % 251, 4096 * block, 4096 * (block + 1));
  return disk;
}

void test("the dumps in FORMAT.md have the checksums they name, and are the disk that the text describes", async (t) => {
  const example = await Example.create(t);
  assert.throws(() => example.read(), NotFetched);
  example.fetchAll();
  assert.ok(example.read().equals(described()));
});

void test("the numbers in FORMAT.md's text are right: the check value, the seed, the hash of the source", () => {
  assert.equal(crc32c(Buffer.from("123456789")), 0xe3069283);
  assert.equal(crc32c(Buffer.from("6789"), crc32c(Buffer.from("12345"))), 0xe3069283, "continued");
  assert.ok(document.includes(`the seed, is 0x${crc32c(Buffer.alloc(16, 0xa7)).toString(16)}`));
  const { url, imageFormat, identity } = JSON.parse(meta()) as { url: string; imageFormat: string; identity: object };
  const source = JSON.stringify([url, imageFormat, ...Object.values(identity)]);
  const hash = createHash("sha256").update(source).digest();
  assert.deepEqual(dump(`blobs/${blobId}/map`, 0x65).subarray(0x20, 0x40), hash);
});

void test("by the rule `all` the write that was not flushed is there, too; only where it was written", async (t) => {
  const example = await Example.create(t);
  example.fetchAll();
  assert.throws(() => example.read({ rule: "all" }), /another boot or is a copy/);
  example.bindHere();
  const disk = described();
  disk.fill(2, 8192, 12_288);
  assert.ok(example.read({ rule: "all" }).equals(disk));
  assert.ok(example.read().equals(described()));
});

void test("a snapshot is read from its frozen map, or from the log; a clone from what it began with and its own log", async (t) => {
  const example = await Example.create(t);
  example.fetchAll();
  example.addClone();
  assert.ok(example.read({}, `${volumeId}@frozen`).equals(described()));
  assert.throws(() => example.read({}, `${volumeId}@other`), /0 of the snapshots/);

  const snapshot = Buffer.concat([described(), Buffer.alloc(4096)]).fill(0x70, 0, 4096);
  assert.ok(example.read({}, `${cloneId}@logged`, snapshot.length).equals(snapshot));
  const clone = Buffer.concat([snapshot, Buffer.alloc(12_583_424 - snapshot.length)]).fill(0x71, 0, 4096);
  assert.ok(example.read({}, cloneId, clone.length).equals(clone));

  const log = join(example.data, "volumes", cloneId, "intent.2");
  const bytes = readFileSync(log);
  writeFileSync(log, bytes.subarray(0, 0x10c8));
  const begun = Buffer.concat([described(), Buffer.alloc(4096)]);
  assert.ok(example.read({}, cloneId, begun.length).equals(begun), "nothing was committed");
  assert.throws(() => example.read({}, `${cloneId}@logged`), /interrupted/);
  writeFileSync(log, bytes);

  const frozen = join(example.data, "maps", frozenId);
  const map = readFileSync(frozen);
  for (let at = 0; at < map.length; at += at >= 0x40 && at < 0xff0 ? 97 : 1) {
    const damaged = Buffer.from(map);
    damaged[at] ^= 0x10;
    writeFileSync(frozen, damaged);
    for (const wanted of [cloneId, `${volumeId}@frozen`])
      assert.throws(() => example.read({}, wanted), at >= 8 && at < 12 ? /versions 1 to 2/ : Damaged, `byte ${at}`);
  }
  rmSync(frozen);
  assert.throws(() => example.read({}, cloneId), /a4a4 is missing/);
});

void test("durability rule 9: a torn tail is no damage, and damage under a commit is", async (t) => {
  const example = await Example.create(t);
  example.fetchAll();
  const log = example.file("intent.3");
  for (let length = 0x10f0; length >= 0x10c8; length -= 7) {
    example.write("intent.3", log.subarray(0, length));
    assert.ok(example.read().equals(described()), `cut to ${length} bytes`);
  }
  // In place of LSN 7: one that was written behind another LSN 6, and a commit of it.
  const stray = record(0x12345678, 7, 1, 0, 1);
  const commit = record(stray.readUInt32LE(0), 8, 2, 7, 6);
  example.write("intent.3", Buffer.concat([log.subarray(0, 0x10c8), stray, commit]));
  assert.ok(example.read().equals(described()), "a record of another chain");
  // The commit at 10a0 proves that LSN 2 was durable, and says nothing of what came later.
  const flipped = (at: number): Buffer => {
    const bytes = Buffer.from(log);
    bytes[at] ^= 1;
    return bytes;
  };
  for (let at = 0x1000; at < 0x1028; at++) {
    example.write("intent.3", flipped(at));
    assert.throws(() => example.read(), Damaged, `byte ${at}`);
  }
  example.write("intent.3", flipped(0x1030));
  const before = Buffer.alloc(8_389_120);
  Buffer.alloc(10_000, "blob").copy(before);
  assert.ok(example.read().equals(before), "nothing of LSN 3 and behind it counts");
});

void test("a damaged checkpoint is passed over for the one before; without one there is no disk", async (t) => {
  const example = await Example.create(t);
  example.fetchAll();
  const map = example.file("map.3");
  for (let at = 0; at < map.length; at += at >= 0x50 && at < 0xff0 ? 97 : 1) {
    const bytes = Buffer.from(map);
    bytes[at] ^= 0x10;
    example.write("map.3", bytes);
    assert.throws(() => example.read(), at >= 8 && at < 12 ? /versions 1 to 2/ : Damaged, `byte ${at}`);
  }
  example.write("map.3", map);
  const newer = Buffer.from(map);
  newer[4096] ^= 1;
  example.write("map.4", newer);
  assert.ok(example.read().equals(described()));
});

void test("a log that was just being created does not count; one with another behind it is damaged", async (t) => {
  const example = await Example.create(t);
  example.fetchAll();
  example.write("intent.4", Buffer.alloc(100));
  assert.ok(example.read().equals(described()));
  const next = Buffer.from(example.file("intent.3"));
  next.writeBigUInt64LE(5n, 72);
  for (const records of [[], [record(0, 8, 2, 7, 7)]]) {
    example.write("intent.5", Buffer.concat([sealed(next.subarray(0, 4096)), ...records]));
    assert.throws(() => example.read(), Damaged);
  }
  example.write("intent.5", Buffer.alloc(100));
  assert.throws(() => example.read(), Damaged);
});

void test("durability rule 10: a gap between logs is refused where something behind it was committed", async (t) => {
  const example = await Example.create(t);
  example.fetchAll();
  const next = Buffer.from(example.file("intent.3").subarray(0, 4096));
  next.writeBigUInt64LE(4n, 72);
  const nextLog = (how: number, lsn: number, ...records: Buffer[]): Buffer => {
    next.writeUInt32LE(how, 80);
    next.writeBigUInt64LE(BigInt(lsn), 88);
    return Buffer.concat([sealed(next), ...records]);
  };
  // intent.3 ends at LSN 7 without an end record
  example.write("intent.4", nextLog(0, 0, record(0, 8, 1, 0, 1)));
  assert.ok(example.read().equals(described()), "nothing committed: it does not count");
  example.write("intent.4", nextLog(0, 0, record(0, 8, 2, 7, 7)));
  assert.throws(() => example.read(), /gap/);
  example.write("intent.4", nextLog(2, 9));
  assert.throws(() => example.read(), /gap/, "LSN 8 and 9 were durable, and are not there");

  // A life made intent.4 and wrote nothing there; the next one synced what intent.3 has and said so in intent.5.
  const flushed = described().fill(2, 8192, 12_288);
  example.write("intent.4", nextLog(0, 0));
  next.writeBigUInt64LE(5n, 72);
  example.write("intent.5", nextLog(2, 7));
  assert.ok(example.read().equals(flushed));
  rmSync(join(example.directory, "intent.5"));
  next.writeBigUInt64LE(4n, 72);

  // The next life went by the cut: LSN 6 and 7 are void for ever, and its own LSN 6 trims block 0.
  const zeroed = described().fill(0, 0, 4096);
  const trim = record(0, 6, 1, 0, 1);
  example.write("intent.4", nextLog(2, 5, trim, record(trim.readUInt32LE(0), 7, 2, 6, 5)));
  assert.ok(example.read().equals(zeroed));
});

void test("a newer format version is refused by name, never taken for damage", async (t) => {
  const example = await Example.create(t);
  example.fetchAll();
  for (const [name, magic] of [
    ["map.3", "ULLAGEMP"],
    ["intent.3", "ULLAGELG"],
  ]) {
    const file = example.file(name);
    const newer = Buffer.from(file);
    newer.writeUInt32LE(3, 8);
    example.write(name, newer);
    assert.throws(() => example.read(), new RegExp(`${magic} has format version 3; this reader knows versions 1 to 2`));
    example.write(name, file);
  }
});

void test("what is too short is damaged, and not zeros", async (t) => {
  const example = await Example.create(t);
  example.fetchAll();
  const layer = join(example.data, "layers", layerId);
  truncateSync(layer, 4096 * 1025 + 100);
  assert.throws(() => example.read(), /ends at byte \d+, too early/);
  example.writeLayer(dump(`layers/${layerId}`, 8_396_800));
  truncateSync(join(example.data, "blobs", blobId, "data"), 9999);
  assert.throws(() => example.read(), /ends at byte 9999, too early/);
  rmSync(join(example.data, "blobs", blobId, "map"));
  assert.throws(() => example.read(), NotFetched);
});
