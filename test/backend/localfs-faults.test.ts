import assert from "node:assert/strict";
import { readdirSync, readlinkSync } from "node:fs";
import { mkdir, rename, rm, symlink, unlink, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { LocalFileBackend } from "../../src/backend/file/localfs.ts";
import { callsUnderWay } from "../../src/backend/file/mount-calls.ts";
import { diskPlaces, otherMountPlaces, otherPlaces } from "../../src/base/pool-slots.ts";
import type { SourceError } from "../../src/base/errors.ts";
import type { SourceSettings } from "../../src/backend/source-settings.ts";
import { temporaryDirectory } from "../daemon/support.ts";
import { fuseTools, mountFuseDisk } from "../support/fuse-disk.ts";
import { requireTool } from "../support/tools.ts";
import { failsWith, openBackend, pattern, readBytes } from "./support.ts";

const MiB = 2 ** 20;
/** More than a kernel reads ahead: what is far from what was read hangs. */
const content = pattern(16 * MiB);
const single = { attempts: 1, baseMs: 1, capMs: 1, timeLimitMs: 1000 };
/** One attempt, given up soon. */
const impatience = { file: { timeoutMs: 200 }, retry: { foreground: single, probe: single } };

async function until(what: string, condition: () => boolean): Promise<void> {
  for (let n = 0; !condition(); n++) {
    assert.ok(n < 1000, what);
    await sleep(20);
  }
}

/** What is well comes, at the latest by the next attempt: on a busy machine even that may take longer than the patience. */
async function comes<T>(ask: () => Promise<T>): Promise<T> {
  for (let left = 50; ; left--) {
    try {
      return await ask();
    } catch (error) {
      if ((error as SourceError).code !== "source-timeout" || left === 0) throw error;
    }
  }
}

/** Descriptors of this process for files below a folder. */
const descriptorsBelow = (folder: string): number =>
  readdirSync("/proc/self/fd").filter((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`).startsWith(folder);
    } catch {
      return false; // closed meanwhile
    }
  }).length;

void test("a file on a disk that has a bad moment is read again; a lasting one is an error that says so, and heals", async (t) => {
  if (!requireTool(t, ...fuseTools)) return;
  const directory = await temporaryDirectory(t);
  const [image, trigger] = ["image", "trigger"].map((name) => join(directory, name));
  await writeFile(image, content);
  const bad = ["error-pread=EIO", "error-pread-rate=100%", `error-pread-file=${trigger}`];
  const { path } = await mountFuseDisk(t, image, { before: ["--filter=error"], behind: bad });
  const impatient = openBackend(path, { retry: { foreground: single } });
  const backend = openBackend(path);
  const { identity } = await backend.probe(1);
  await writeFile(trigger, "");
  const failure = await failsWith("source-io", readBytes(impatient, identity, 4096, 1000));
  assert.equal(failure.transient, true);
  assert.match(failure.message, /disk cannot be read \(EIO\)$/);
  const retried = Promise.withResolvers<SourceError>();
  const reading = readBytes(backend, identity, 4096, 1000, { onRetry: retried.resolve });
  await retried.promise;
  await rm(trigger);
  assert.deepEqual(await reading, content.subarray(4096, 5096));
  assert.deepEqual(await readBytes(impatient, identity, 4096, 1000), content.subarray(4096, 5096));
  await impatient.close();
  await backend.close();
});

void test("a client's read of a file is tried again for as long as is configured for its path", async (t) => {
  if (!requireTool(t, ...fuseTools)) return;
  const image = join(await temporaryDirectory(t), "image");
  await writeFile(image, content);
  const bad = ["error-pread=EIO", "error-pread-rate=100%"];
  const { path } = await mountFuseDisk(t, image, { before: ["--filter=error"], behind: bad });
  const { identity } = await new LocalFileBackend(path).probe(0);
  /** @returns how long it was waited before the read failed, s; the time passes at once */
  const triedFor = async (settings: SourceSettings[]): Promise<number> => {
    let waitedMs = 0;
    const wait = (ms: number): Promise<void> => Promise.resolve(void (waitedMs += ms));
    const clock = { now: () => waitedMs, wallTime: () => "", sleep: wait };
    const backend = openBackend(path, { clock, settings });
    await failsWith("source-io", readBytes(backend, identity, 4096, 1000));
    await backend.close();
    return waitedMs / 1000;
  };
  const folder = dirname(path);
  const usual = await triedFor([{ prefix: `${folder}-other`, patience: 600 }]);
  assert.ok(usual <= 30, `${usual} s`);
  const long = await triedFor([{ prefix: folder, patience: 600 }]);
  assert.ok(long > 500 && long <= 600, `${long} s`);
  const short = await triedFor([
    { prefix: folder, patience: 600 },
    { prefix: path, patience: 1 },
  ]);
  assert.ok(short <= 1, `${short} s`);
});

void test("reads of a file system that hangs are given up, then refused at once, hold few threads, and go on when it answers", async (t) => {
  if (!requireTool(t, ...fuseTools)) return;
  const directory = await temporaryDirectory(t);
  const [image, healthy] = ["image", "healthy"].map((name) => join(directory, name));
  await writeFile(image, content);
  await writeFile(healthy, content);
  const disk = await mountFuseDisk(t, image);
  const backend = openBackend(disk.path, impatience);
  const other = openBackend(disk.path, impatience);
  const patient = openBackend(disk.path, { file: { timeoutMs: 200 } });
  const unused = openBackend(disk.path, impatience);
  const { identity } = await comes(() => backend.probe(1));
  await comes(() => readBytes(unused, identity, 0, 1)); // it keeps its descriptor for a while
  await disk.hang();
  const reads = Array.from({ length: 20 }, (_, n) => readBytes(backend, identity, 8 * MiB + n * 4096, 4096));
  const failures = await Promise.all(reads.map((read) => failsWith("source-timeout", read)));
  for (const { transient, message, hint } of failures) {
    assert.equal(transient, true);
    assert.match(message, /disk does not answer: .*\/mounted \(fuse.*\) has been silent for \d+ s$/);
    assert.match(hint ?? "", /see what is wrong with .*\/mounted; when it answers/);
  }
  await unused.close();
  // Another source on the same mount, too; however often somebody asks, no more threads are held.
  for (let n = 0; n < 20; n++) {
    await failsWith("source-timeout", other.probe(1));
    await sleep(30);
  }
  assert.ok(callsUnderWay() > 0);
  assert.ok(callsUnderWay() <= otherMountPlaces.total, `${callsUnderWay()} calls`);
  const good = openBackend(healthy, impatience);
  const { identity: there } = await comes(() => good.probe(1));
  assert.deepEqual(await comes(() => readBytes(good, there, 4096, 100_000)), content.subarray(4096, 104_096));

  // Whoever keeps trying gets it as soon as it answers.
  const retried = Promise.withResolvers<SourceError>();
  const reading = readBytes(patient, identity, 4 * MiB, 8192, { onRetry: retried.resolve });
  await retried.promise;
  disk.answer();
  assert.deepEqual(await reading, content.subarray(4 * MiB, 4 * MiB + 8192));
  assert.deepEqual(await comes(() => readBytes(backend, identity, 0, content.length)), content);
  await until("calls that were given up do not return", () => callsUnderWay() === 0);
  for (const each of [backend, other, patient, good]) await each.close();
  await until("descriptors are left", () => descriptorsBelow(disk.path) === 0);
});

void test("a closed backend and an aborted read leave a hung call behind at once, and its descriptor goes when it returns", async (t) => {
  if (!requireTool(t, ...fuseTools)) return;
  const image = join(await temporaryDirectory(t), "image");
  await writeFile(image, content);
  const disk = await mountFuseDisk(t, image);
  const patience = { file: { timeoutMs: 600_000 } };
  const [aborted, closed] = [openBackend(disk.path, patience), openBackend(disk.path, patience)];
  const { identity } = await aborted.probe(1);
  await disk.hang();
  const controller = new AbortController();
  const reason = new Error("not needed any more");
  const reads = [
    readBytes(aborted, identity, 8 * MiB, 4096, { signal: controller.signal }),
    readBytes(closed, identity, 12 * MiB, 4096),
  ];
  const outcomes = Promise.allSettled(reads);
  await until("the calls do not hang", () => callsUnderWay() >= 2);
  controller.abort(reason);
  await closed.close();
  const [first, second] = await outcomes;
  assert.equal((first as PromiseRejectedResult).reason, reason);
  assert.equal(((second as PromiseRejectedResult).reason as SourceError).code, "source-closed");
  await aborted.close();
  disk.answer();
  await until("calls do not return", () => callsUnderWay() === 0);
  await until("descriptors are left", () => descriptorsBelow(disk.path) === 0);
});

void test("which mount a path leads to is found out by links, without touching what hangs there", async (t) => {
  if (!requireTool(t, ...fuseTools)) return;
  const directory = await temporaryDirectory(t);
  const image = join(directory, "image");
  await writeFile(image, content);
  const disk = await mountFuseDisk(t, image);
  await mkdir(join(directory, "links"));
  const link = join(directory, "links", "disk");
  await symlink(`../../${disk.path.split("/").slice(-3).join("/")}`, link);
  const backend = openBackend(link, impatience);
  const { identity } = await comes(() => backend.probe(1));
  assert.equal(identity.size, content.length);
  await backend.close();
  await disk.hang();
  // By the link the mount behind it is silent, not that of the link: more often than there are places on a disk.
  for (let n = 0; n <= diskPlaces.total; n++) {
    const again = openBackend(link, impatience);
    assert.match((await failsWith("source-timeout", again.probe(1))).message, /\/mounted \(fuse/);
    await again.close();
  }
  // The link leads elsewhere by now: nothing of what hangs is in its way.
  await symlink(image, `${link}.new`);
  await rename(`${link}.new`, link);
  const elsewhere = openBackend(link, impatience);
  assert.equal((await comes(() => elsewhere.probe(1))).identity.size, content.length);
  await elsewhere.close();
  await unlink(link);
  disk.answer();
  await until("calls do not return", () => callsUnderWay() === 0);
});

void test("a file system that hangs again and again is read again and again", async (t) => {
  if (!requireTool(t, ...fuseTools)) return;
  const image = join(await temporaryDirectory(t), "image");
  await writeFile(image, content);
  const disk = await mountFuseDisk(t, image);
  const backend = openBackend(disk.path, impatience);
  const { identity } = await comes(() => backend.probe(1));
  // More calls are lost in all than there are threads for them.
  for (let round = 1; round <= otherPlaces.total; round++) {
    const at = round * 2 * MiB;
    await disk.hang();
    const reads = Array.from({ length: otherMountPlaces.total }, (_, n) =>
      failsWith("source-timeout", readBytes(backend, identity, at + n * 4096, 4096)),
    );
    await Promise.all(reads);
    disk.answer();
    await until("calls that were given up do not return", () => callsUnderWay() === 0);
    assert.deepEqual(await comes(() => readBytes(backend, identity, at, 4096)), content.subarray(at, at + 4096));
  }
  await backend.close();
});
