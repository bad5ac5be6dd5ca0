import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { IoError } from "../../src/base/errors.ts";
import type { File } from "../../src/base/file-system.ts";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { realFileSystem } from "../../src/base/real-file-system.ts";
import { LoopDisk, mountOverlay, mountTmpfs } from "../support/mounts.ts";
import { requireTool } from "../support/tools.ts";

function temporaryDirectory(t: TestContext): string {
  const dir = mkdtempSync(join(tmpdir(), "ullage-fs-"));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

async function newFile(t: TestContext, dir: string, name = "file"): Promise<File> {
  const file = await realFileSystem.open(join(dir, name), "create");
  t.after(() => file.close());
  return file;
}

const pattern = (length: number): Buffer => Buffer.from(Array.from({ length }, (_, index) => (index * 7) & 0xff));

/** All of a range, the way the engine reads: what is there at once, then the rest from the pool. */
async function readBothWays(file: File, length: number, offset: number): Promise<Buffer> {
  const buffer = new IoBuffer(length + 512);
  buffer.bytes.fill(0xee);
  const got = file.tryRead(buffer, 256, length, offset);
  assert.ok(got >= 0 && got <= length);
  const rest = got === length ? 0 : await file.read(buffer, 256 + got, length - got, offset + got);
  assert.ok(
    buffer.bytes.subarray(0, 256).every((byte) => byte === 0xee) &&
      buffer.bytes.subarray(256 + length).every((byte) => byte === 0xee),
    "nothing outside the range is touched",
  );
  return buffer.bytes.subarray(256, 256 + got + rest);
}

async function readsWhatWasWritten(t: TestContext, dir: string): Promise<File> {
  const file = await newFile(t, dir);
  const bytes = pattern(300_000);
  file.writeNow(IoBuffer.from(bytes.subarray(0, 100_000)), 0, 100_000, 0);
  await file.write(IoBuffer.from(bytes), 100_000, 200_000, 100_000);
  assert.equal(file.size(), 300_000);
  assert.deepEqual(await readBothWays(file, 300_000, 0), bytes);
  assert.deepEqual(await readBothWays(file, 4096, 123_457), bytes.subarray(123_457, 123_457 + 4096));
  assert.deepEqual(await readBothWays(file, 4096, 299_000), bytes.subarray(299_000), "short at the end of the file");
  assert.equal((await readBothWays(file, 4096, 300_000)).length, 0);
  await file.datasync();
  return file;
}

void test("rule 23: ext4 answers from the page cache at once; what is not cached comes from the pool", async (t) => {
  if (!requireTool(t, "root", "loop", "losetup", "mount", "mkfs.ext4")) return;
  const disk = new LoopDisk(t, "ext4", 64 * 1024 * 1024);
  const file = await newFile(t, disk.dir);
  const bytes = pattern(65536);
  await file.write(IoBuffer.from(bytes), 0, bytes.length, 0);
  await file.datasync();
  const buffer = new IoBuffer(65536);
  assert.equal(file.tryRead(buffer, 0, 65536, 0), 65536, "all of it is cached");
  assert.equal(await file.dropCache(), true);
  buffer.bytes.fill(0xee);
  const got = file.tryRead(buffer, 0, 65536, 0);
  assert.ok(got < 65536, "a cold file is not waited for");
  assert.ok(
    buffer.bytes.subarray(got).every((byte) => byte === 0xee),
    "bytes behind a short answer are not touched",
  );
  assert.deepEqual(await readBothWays(file, 65536, 0), bytes);
});

void test("rule 23: tmpfs has no RWF_NOWAIT; plain reads answer at once all the same", async (t) => {
  if (!requireTool(t, "root", "mount")) return;
  const file = await readsWhatWasWritten(t, mountTmpfs(t, 16 * 1024 * 1024));
  assert.equal(file.tryRead(new IoBuffer(4096), 0, 4096, 0), 4096);
});

void test("rule 23: overlayfs has no RWF_NOWAIT; every read goes to the pool and comes back whole", async (t) => {
  if (!requireTool(t, "root", "mount")) return;
  const file = await readsWhatWasWritten(t, mountOverlay(t));
  assert.equal(file.tryRead(new IoBuffer(4096), 0, 4096, 0), 0, "the calling thread could wait for a disk here");
  assert.equal(file.binding().fileSystem, "overlay");
});

void test("files read back what was written, both ways", async (t) => {
  await readsWhatWasWritten(t, temporaryDirectory(t));
});

void test("a range outside its buffer is refused before any call", async (t) => {
  const file = await newFile(t, temporaryDirectory(t));
  const buffer = new IoBuffer(4096);
  assert.throws(() => file.tryRead(buffer, 1, 4096, 0), RangeError);
  assert.throws(() => file.writeNow(buffer, -1, 10, 0), RangeError);
  await assert.rejects(file.read(buffer, 0, 4097, 0), RangeError);
  await assert.rejects(file.write(buffer, 4096, 1, 0), RangeError);
});

void test("failures are IoErrors with the errno and the path", async (t) => {
  const dir = temporaryDirectory(t);
  await newFile(t, dir);
  const path = join(dir, "file");
  const has = (errno: string) => (error: unknown) =>
    error instanceof IoError && error.errno === errno && error.message.includes(dir);
  await assert.rejects(realFileSystem.open(path, "create"), has("EEXIST"));
  await assert.rejects(realFileSystem.open(join(dir, "missing"), "read"), has("ENOENT"));
  await assert.rejects(realFileSystem.open(join(dir, "missing"), "write"), has("ENOENT"));
  await assert.rejects(realFileSystem.rename(join(dir, "missing"), path), has("ENOENT"));
  await assert.rejects(realFileSystem.readFile(join(dir, "missing")), has("ENOENT"));
  const readOnly = await realFileSystem.open(path, "read");
  t.after(() => readOnly.close());
  assert.throws(() => readOnly.writeNow(new IoBuffer(10), 0, 10, 0), has("EBADF"));
  await assert.rejects(readOnly.write(new IoBuffer(10), 0, 10, 0), has("EBADF"));
});

void test("a full disk is ENOSPC, on the calling thread and in the pool", async (t) => {
  if (!requireTool(t, "root", "mount")) return;
  const dir = mountTmpfs(t, 1024 * 1024);
  const file = await newFile(t, dir);
  const buffer = new IoBuffer(2 * 1024 * 1024);
  const full = { errno: "ENOSPC" };
  assert.throws(() => file.writeNow(buffer, 0, buffer.length, 0), full);
  await assert.rejects(file.write(buffer, 0, buffer.length, 0), full);
  const { free, total } = await realFileSystem.space(dir);
  assert.equal(total, 1024 * 1024);
  assert.equal(free, 0);
});

void test("punching frees the range and leaves the rest; holes and data can be told apart", async (t) => {
  const file = await newFile(t, temporaryDirectory(t));
  const blocks = new IoBuffer(64 * 4096);
  blocks.bytes.fill(1);
  await file.truncate(128 * 4096);
  await file.write(blocks, 0, blocks.length, 0);
  await file.datasync();
  const before = file.allocated();
  assert.equal(file.punchNow(8 * 4096, 8 * 4096), true);
  assert.equal(await file.punch(32 * 4096, 8 * 4096), true);
  await file.datasync();
  assert.equal(before - file.allocated(), 16 * 4096);
  assert.equal(file.size(), 128 * 4096, "the size stays");
  assert.deepEqual(await readBothWays(file, 4096, 8 * 4096), Buffer.alloc(4096));
  assert.deepEqual(await readBothWays(file, 4096, 16 * 4096), Buffer.alloc(4096, 1));
  assert.equal(file.seekHole(0), 8 * 4096);
  assert.equal(file.seekData(8 * 4096), 16 * 4096);
  assert.equal(file.seekData(64 * 4096), -1, "no data up to the end");
  assert.equal(file.seekData(1000 * 4096), -1, "nor behind it");
});

void test("truncating works both ways", async (t) => {
  const file = await newFile(t, temporaryDirectory(t));
  await file.truncate(10_000);
  assert.equal(file.size(), 10_000);
  file.truncateNow(100);
  assert.equal(file.size(), 100);
});

void test("rule 7: the binding is equal for every opening of a file, and differs between files", async (t) => {
  const dir = temporaryDirectory(t);
  const file = await newFile(t, dir);
  const again = await realFileSystem.open(join(dir, "file"), "read");
  t.after(() => again.close());
  const binding = file.binding();
  assert.deepEqual(again.binding(), binding);
  assert.equal(binding.bootId, readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim());
  assert.equal(binding.inode, statSync(join(dir, "file")).ino);
  assert.notEqual(binding.mountId, "");
  assert.notEqual((await newFile(t, dir, "other")).binding().inode, binding.inode);
});

void test("rule 7: mounting a file system again changes the mount's id and nothing else", async (t) => {
  if (!requireTool(t, "root", "loop", "losetup", "mount", "mkfs.ext4")) return;
  const disk = new LoopDisk(t, "ext4", 64 * 1024 * 1024);
  const path = join(disk.dir, "file");
  const file = await realFileSystem.open(path, "create");
  const before = file.binding();
  await file.close();
  disk.unmount();
  disk.mount();
  const again = await realFileSystem.open(path, "read");
  const after = again.binding();
  await again.close();
  assert.equal(before.fileSystem, "ext4");
  assert.notEqual(after.mountId, before.mountId);
  assert.deepEqual({ ...after, mountId: before.mountId }, before);
});

void test("a sealed file is read-only, and for its owner alone", async (t) => {
  const dir = temporaryDirectory(t);
  await (await newFile(t, dir)).seal();
  assert.equal(statSync(join(dir, "file")).mode & 0o777, 0o400);
});

void test("directories: existing is no error for mkdir, missing is none for unlink and readdir", async (t) => {
  const dir = temporaryDirectory(t);
  await realFileSystem.mkdir(join(dir, "sub"));
  await realFileSystem.mkdir(join(dir, "sub"));
  assert.equal(statSync(join(dir, "sub")).mode & 0o777, 0o700);
  assert.deepEqual(await realFileSystem.readdir(join(dir, "missing")), []);
  await realFileSystem.unlink(join(dir, "missing"));
  writeFileSync(join(dir, "sub/x"), "");
  assert.deepEqual(await realFileSystem.readdir(join(dir, "sub")), ["x"]);
  assert.equal(await realFileSystem.exists(join(dir, "sub/x")), true);
  await realFileSystem.unlink(join(dir, "sub/x"));
  assert.equal(await realFileSystem.exists(join(dir, "sub/x")), false);
  await realFileSystem.syncDirectory(dir);
  await realFileSystem.rmdir(join(dir, "sub"));
  await assert.rejects(realFileSystem.syncDirectory(join(dir, "sub")), { errno: "ENOENT" });
});

void test("rule 20: a second opener of a locked directory is refused, in this process and in another", async (t) => {
  const dir = temporaryDirectory(t);
  const lock = await realFileSystem.lockDirectory(dir);
  await assert.rejects(realFileSystem.lockDirectory(dir), { code: "locked" });
  const other = (): number | null =>
    spawnSync("flock", ["--nonblock", dir, "true"], { stdio: "ignore", timeout: 10_000 }).status;
  assert.equal(other(), 1, "another process is refused");
  await lock.release();
  assert.equal(other(), 0, "a released lock is free");
  await (await realFileSystem.lockDirectory(dir)).release();
});

void test("rule 20: files beside it, made or removed, do not free a locked directory", async (t) => {
  const dir = temporaryDirectory(t);
  const lock = await realFileSystem.lockDirectory(dir);
  t.after(() => lock.release());
  writeFileSync(join(dir, "lock"), "1");
  rmSync(join(dir, "lock"));
  mkdirSync(join(dir, "sub"));
  await assert.rejects(realFileSystem.lockDirectory(dir), { code: "locked" });
});
