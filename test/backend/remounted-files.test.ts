import assert from "node:assert/strict";
import { renameSync, rmSync, statSync, truncateSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import type { Identity } from "../../src/backend/backend.ts";
import { LocalFileBackend } from "../../src/backend/file/localfs.ts";
import { temporaryDirectory } from "../daemon/support.ts";
import { LoopDisk, SshfsDisk } from "../support/mounts.ts";
import { requireTool } from "../support/tools.ts";
import { failsWith, pattern, readBytes } from "./support.ts";

const MiB = 2 ** 20;
const content = pattern(MiB);
const other = pattern(MiB, 2);
const long = new Date(2020, 1, 1);

async function probe(path: string): Promise<Identity> {
  const backend = new LocalFileBackend(path);
  const { identity } = await backend.probe(0);
  await backend.close();
  assert.equal(identity.strong, true);
  return identity;
}

/** As after a restart: nothing of what was open before. */
async function read(path: string, identity: Identity): Promise<Buffer> {
  const backend = new LocalFileBackend(path);
  try {
    return await readBytes(backend, identity, 0, content.length);
  } finally {
    await backend.close();
  }
}

void test("a file is the same on a file system that is mounted from another device; one that was changed, touched, truncated or replaced meanwhile is not", async (t) => {
  if (!requireTool(t, "root", "loop", "mount", "losetup", "mkfs.ext4")) return;
  const disk = new LoopDisk(t, "ext4", 64 * MiB);
  const path = join(disk.dir, "disk.raw");
  writeFileSync(path, content);
  const identity = await probe(path);
  const { dev, ino } = statSync(path);
  const asBefore = { ...identity, version: identity.version.replace("file:", `file:${dev}:`) };
  disk.unmount();
  disk.changeDevice();
  disk.mount();
  assert.notEqual(statSync(path).dev, dev);
  assert.equal(statSync(path).ino, ino);
  assert.deepEqual(await read(path, identity), content);
  assert.deepEqual(await read(path, asBefore), content);

  const changes = [
    () => writeFileSync(path, other, { flag: "r+" }),
    () => utimesSync(path, long, long),
    () => truncateSync(path, content.length - 1),
    () => {
      writeFileSync(`${path}.new`, content);
      renameSync(`${path}.new`, path);
    },
    () => {
      rmSync(path);
      writeFileSync(path, content);
    },
  ];
  for (const change of changes) {
    const pinned = await probe(path);
    const version = pinned.version.replace("file:", `file:${statSync(path).dev}:`);
    change();
    disk.unmount();
    disk.changeDevice();
    disk.mount();
    await failsWith("source-changed", read(path, pinned));
    await failsWith("source-changed", read(path, { ...pinned, version }));
    writeFileSync(path, content);
  }
});

void test("a descriptor is not taken for the file that is at its path now when only the devices differ", async (t) => {
  if (!requireTool(t, "root", "loop", "mount", "losetup", "mkfs.ext4")) return;
  const disk = new LoopDisk(t, "ext4", 64 * MiB);
  const path = join(disk.dir, "disk.raw");
  writeFileSync(path, content);
  disk.unmount();
  const cover = disk.copy();
  disk.mount();
  const identity = await probe(path);
  const backend = new LocalFileBackend(path);
  await readBytes(backend, identity, 0, 1); // leaves the descriptor
  const uncover = cover();
  try {
    const failure = await failsWith("source-changed", readBytes(backend, identity, 0, 1));
    assert.match(failure.message, /was replaced while it was read/);
    assert.deepEqual(await read(path, identity), content);
  } finally {
    await backend.close();
    uncover();
  }
});

void test("two files that were written at the same moment are not taken for each other where inode numbers last", async (t) => {
  const directory = await temporaryDirectory(t);
  const path = join(directory, "disk.raw");
  writeFileSync(path, content);
  const identity = await probe(path);
  const [, inode, mtime, ctime] = identity.version.split(":");
  await failsWith(
    "source-changed",
    read(path, { ...identity, version: `file:${Number(inode) + 1}:${mtime}:${ctime}` }),
  );
});

void test("a file behind FUSE is the same when it is mounted again and numbered otherwise; a change is noticed all the same", async (t) => {
  if (!requireTool(t, "root", "fuse", "sshfs", "sftp-server", "fusermount3")) return;
  const behind = await temporaryDirectory(t);
  for (const name of ["first", "second"]) {
    writeFileSync(join(behind, name), content);
    utimesSync(join(behind, name), long, long);
  }
  const disk = new SshfsDisk(t, behind);
  const [first, second] = ["first", "second"].map((name) => join(disk.dir, name));
  const number = statSync(first).ino;
  const { dev, ino } = statSync(second);
  const identity = await probe(second);
  const asBefore = { ...identity, version: identity.version.replace("file:", `file:${dev}:${ino}:`) };
  disk.unmount();
  disk.mount();
  assert.equal(statSync(second).ino, number, "sshfs numbers in the order of looking up");
  assert.deepEqual(await read(second, identity), content);
  assert.deepEqual(await read(second, asBefore), content);

  // At once, and with the daemon's descriptor from before.
  const backend = new LocalFileBackend(second);
  await readBytes(backend, identity, 0, 1);
  writeFileSync(join(behind, "second"), other);
  await failsWith("source-changed", readBytes(backend, identity, 0, 1));
  await backend.close();
  for (const pinned of [identity, asBefore]) await failsWith("source-changed", read(second, pinned));
  utimesSync(join(behind, "second"), long, new Date(long.getTime() + 1000));
  for (const pinned of [identity, asBefore]) await failsWith("source-changed", read(second, pinned));
  truncateSync(join(behind, "second"), 100);
  utimesSync(join(behind, "second"), long, long);
  for (const pinned of [identity, asBefore]) await failsWith("source-changed", read(second, pinned));
});

void test("a file that was written just now is not surely pinned where times are whole seconds", async (t) => {
  if (!requireTool(t, "root", "fuse", "sshfs", "sftp-server", "fusermount3")) return;
  const behind = await temporaryDirectory(t);
  const path = join(new SshfsDisk(t, behind).dir, "disk.raw");
  writeFileSync(path, content);
  const ahead = new Date(Date.now() + 60_000); // this moment, however slow the machine is
  utimesSync(path, ahead, ahead);
  const backend = new LocalFileBackend(path);
  assert.equal((await backend.probe(0)).identity.strong, false);
  utimesSync(path, long, long);
  assert.equal((await backend.probe(0)).identity.strong, true);
  await backend.close();
});
