import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import promises, {
  chmod,
  mkdir,
  mkdtemp,
  open,
  readdir,
  readlink,
  rename,
  rm,
  stat,
  symlink,
  truncate,
  utimes,
  writeFile,
} from "node:fs/promises";
import { syncBuiltinESMExports } from "node:module";
import { release, tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, test } from "node:test";
import { LocalFileBackend } from "../../src/backend/file/localfs.ts";
import { IoError } from "../../src/base/errors.ts";
import { anyPageCached, dropPageCache, fileSystemName } from "../../src/base/posix.ts";
import { requireTool } from "../support/tools.ts";
import { collect, failsWith, pattern, readBytes } from "./support.ts";

let directory: string;
let path: string;
const content = pattern(2_500_001);

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "ullage-localfs-"));
  path = join(directory, "disk.img");
  await writeFile(path, content);
});
afterEach(() => rm(directory, { recursive: true }));

void test("probe tells size, identity and the first bytes", async () => {
  const { identity, head, ranges } = await new LocalFileBackend(path).probe(512);
  const { ino } = await stat(path);
  assert.equal(identity.size, content.length);
  assert.equal(identity.strong, true);
  assert.match(identity.version, new RegExp(`^file:${ino}:\\d{19}:\\d{19}$`));
  assert.deepEqual(head, content.subarray(0, 512));
  assert.equal(ranges, true);
});

void test("the head of a file shorter than what was asked for is the file", async () => {
  await writeFile(path, "tiny");
  const { head } = await new LocalFileBackend(path).probe(4096);
  assert.equal(head.toString(), "tiny");
});

void test("an empty file has an identity and no bytes", async () => {
  await writeFile(path, "");
  const backend = new LocalFileBackend(path);
  const { identity, head } = await backend.probe(4096);
  assert.equal(identity.size, 0);
  assert.equal(head.length, 0);
  assert.equal((await readBytes(backend, identity, 0, 0)).length, 0);
});

void test("reads give exactly their ranges, in order, at any alignment", async () => {
  const backend = new LocalFileBackend(path);
  const { identity } = await backend.probe(0);
  for (const [offset, length] of [
    [0, content.length],
    [1, 1],
    [1_048_575, 1_048_578],
    [content.length - 1, 1],
  ] as const) {
    assert.deepEqual(await readBytes(backend, identity, offset, length), content.subarray(offset, offset + length));
  }
});

void test("what an older version pinned, with the device, is the same file; what only looks alike is not", async () => {
  const backend = new LocalFileBackend(path);
  const { identity } = await backend.probe(0);
  const [inode, mtime, ctime] = identity.version.split(":").slice(1).map(BigInt);
  const readAs = (version: string, size = content.length): Promise<Buffer> =>
    readBytes(backend, { size, version, strong: true }, 0, 100);
  for (const device of [(await stat(path)).dev, 1, 2 ** 53]) {
    const bytes = await readAs(`file:${device}:${inode}:${mtime}:${ctime}`);
    assert.deepEqual(bytes, content.subarray(0, 100));
    for (const [i, m, c] of [
      [1n, 0n, 0n],
      [0n, 1n, 0n],
      [0n, 0n, 1n],
    ]) {
      await failsWith("source-changed", readAs(`file:${device}:${inode + i}:${mtime + m}:${ctime + c}`));
    }
    await failsWith("source-changed", readAs(`file:${device}:${inode}:${mtime}:${ctime}`, content.length - 1));
  }
  for (const version of ["", "file:", `file:${ctime}`, `${identity.version}:1`, `etag:${identity.version}`]) {
    await failsWith("source-changed", readAs(version));
  }
});

void test("times that are whole seconds pin a file once it can't be written to within the same second", async () => {
  const backend = new LocalFileBackend(path);
  const real = promises.stat;
  const withTimes = async (ns: bigint): Promise<boolean> => {
    const opened = await open(path);
    const whole = { mtimeNs: ns, ctimeNs: ns };
    const changed = (async (...args: Parameters<typeof real>) =>
      Object.assign((await real(...args))!, whole)) as typeof real;
    const prototype = Object.getPrototypeOf(opened) as { stat: typeof opened.stat };
    const ofDescriptor = prototype.stat;
    await opened.close();
    promises.stat = changed;
    syncBuiltinESMExports();
    prototype.stat = async function (this: typeof opened, ...args: []) {
      return Object.assign(await ofDescriptor.apply(this, args), whole);
    } as typeof ofDescriptor;
    try {
      return (await backend.probe(0)).identity.strong;
    } finally {
      promises.stat = real;
      syncBuiltinESMExports();
      prototype.stat = ofDescriptor;
    }
  };
  const second = 1_000_000_000n;
  const now = BigInt(Math.floor(Date.now() / 1000)) * second;
  assert.equal(await withTimes(now + 3600n * second), false);
  assert.equal(await withTimes(now), false);
  assert.equal(await withTimes(now - 2n * second), true);
  assert.equal(await withTimes(now + 1n), true);
});

void test("many reads at once, with slow sinks, do not get each other's bytes", async () => {
  const backend = new LocalFileBackend(path);
  const { identity } = await backend.probe(0);
  const reads = Array.from({ length: 12 }, async (_, n) => {
    const collector = collect(() => new Promise((resolve) => setTimeout(resolve, n % 3)));
    await backend.read(identity, n * 1000, 2_000_000, collector.sink, { background: n % 2 === 0 });
    assert.deepEqual(collector.bytes(), content.subarray(n * 1000, n * 1000 + 2_000_000));
  });
  await Promise.all(reads);
});

void test("a stream is the whole file", async () => {
  const backend = new LocalFileBackend(path);
  const { identity } = await backend.probe(0);
  const collector = collect();
  await backend.stream(identity, collector.sink);
  assert.deepEqual(collector.bytes(), content);
});

void test("a range outside of the file is a mistake of the caller", async () => {
  const backend = new LocalFileBackend(path);
  const { identity } = await backend.probe(0);
  await assert.rejects(readBytes(backend, identity, content.length - 1, 2), RangeError);
});

void test("durability rule 31: a file changed in place while it is read fails the read", async () => {
  const backend = new LocalFileBackend(path);
  const { identity } = await backend.probe(0);
  const change = async (): Promise<void> => {
    const file = await open(path, "r+");
    await file.write("changed", 0);
    await file.close();
  };
  await failsWith("source-changed", backend.read(identity, 0, content.length, change));
});

void test("durability rule 31: a file changed between two reads fails the second, though its mtime was put back", async () => {
  const backend = new LocalFileBackend(path);
  const old = new Date(2020, 1, 1);
  await utimes(path, old, old);
  const { identity } = await backend.probe(0);
  await readBytes(backend, identity, 0, 4096);
  await writeFile(path, pattern(content.length, 2));
  await utimes(path, old, old);
  await failsWith("source-changed", readBytes(backend, identity, 0, 4096));
});

void test("durability rule 31: a link that points elsewhere during a read fails it, even if it points back at the end", async () => {
  const link = join(directory, "link");
  const other = join(directory, "other");
  await writeFile(other, pattern(content.length, 2));
  const point = async (to: string): Promise<void> => {
    await symlink(to, `${link}.new`);
    await rename(`${link}.new`, link);
  };
  await point(path);
  const backend = new LocalFileBackend(link);
  const { identity } = await backend.probe(0);
  await failsWith(
    "source-changed",
    backend.read(identity, 0, 100, () => point(other)),
  );
  await failsWith(
    "source-changed",
    backend.read(identity, 0, 100, () => point(path)),
  );
  assert.deepEqual(await readBytes(backend, identity, 0, 100), content.subarray(0, 100));
});

void test("durability rule 31: a look that began before the last byte of a read was there does not count for it", async (t) => {
  const backend = new LocalFileBackend(path);
  const { identity } = await backend.probe(0);
  await readBytes(backend, identity, 0, 1); // leaves the descriptor
  // The next look is made at once, and told late.
  const real = promises.stat;
  const looked = Promise.withResolvers<void>();
  const told = Promise.withResolvers<void>();
  const restore = (): void => {
    promises.stat = real;
    syncBuiltinESMExports();
  };
  t.after(restore);
  promises.stat = (async (...args: Parameters<typeof real>) => {
    restore();
    const found = await real(...args);
    looked.resolve();
    await told.promise;
    return found;
  }) as typeof real;
  syncBuiltinESMExports();
  const before = readBytes(backend, identity, 0, 1000);
  await looked.promise;
  const { atime, mtime } = await stat(path);
  await utimes(path, atime, new Date(mtime.getTime() + 1000));
  const behind = Array.from({ length: 3 }, (_, n) =>
    failsWith("source-changed", readBytes(backend, identity, n, 1000)),
  );
  const ended = Promise.all(behind);
  const first = await Promise.race([ended, before, new Promise((resolve) => setTimeout(resolve, 50, "all wait"))]);
  assert.equal(first, "all wait");
  told.resolve();
  assert.deepEqual(await before, content.subarray(0, 1000));
  await ended;
  await backend.close();
});

void test("a large read is right with and without the kernel's help, and leaves nothing of the file in the page cache where there is such help", async (t) => {
  const memory = await mkdtemp("/dev/shm/ullage-localfs-");
  t.after(() => rm(memory, { recursive: true }));
  const [major, minor] = release().split(".").map(Number);
  for (const folder of [directory, memory]) {
    const file = join(folder, "large.img");
    const bytes = pattern(3_000_001);
    await writeFile(file, bytes);
    const handle = await open(file);
    try {
      await handle.datasync();
      dropPageCache(handle.fd);
      const backend = new LocalFileBackend(file);
      const { identity } = await backend.probe(0);
      assert.ok((await readBytes(backend, identity, 5, 2_999_990)).equals(bytes.subarray(5, 2_999_995)));
      const helps = folder === directory && fileSystemName(handle.fd) === "ext4" && major * 1000 + minor >= 6_015;
      if (helps) assert.equal(anyPageCached(handle.fd, 0, 2_900_000), false);
      await backend.close();
    } finally {
      await handle.close();
    }
  }
});

void test("durability rule 31: a file replaced while it is read fails the read", async () => {
  const backend = new LocalFileBackend(path);
  const { identity } = await backend.probe(0);
  await writeFile(join(directory, "new"), content);
  const replace = async (): Promise<void> => {
    await rename(join(directory, "new"), path).catch(() => undefined);
  };
  await failsWith("source-changed", backend.read(identity, 0, content.length, replace));
});

void test("a file truncated while it is read fails the read as changed", async () => {
  const backend = new LocalFileBackend(path);
  const { identity } = await backend.probe(0);
  await failsWith(
    "source-changed",
    backend.read(identity, 0, content.length, () => truncate(path, 1_200_000)),
  );
});

void test("after a change, a new probe pins the new file", async () => {
  const backend = new LocalFileBackend(path);
  const old = await backend.probe(0);
  await writeFile(path, "second");
  await failsWith("source-changed", readBytes(backend, { ...old.identity, size: 6 }, 0, 6));
  const { identity } = await backend.probe(0);
  assert.equal((await readBytes(backend, identity, 0, 6)).toString(), "second");
});

void test("a missing file and what is no file are told apart", async () => {
  const missing = await failsWith("source-not-found", new LocalFileBackend(join(directory, "none")).probe(1));
  assert.match(missing.message, /none does not exist/);
  assert.equal(missing.transient, false);
  await failsWith("source-not-found", new LocalFileBackend(join(path, "below")).probe(1));
  await failsWith("source-not-found", new LocalFileBackend(join(directory, "n".repeat(300))).probe(1));
  await symlink("circle", join(directory, "circle"));
  const circle = await failsWith("source-not-found", new LocalFileBackend(join(directory, "circle")).probe(1));
  assert.match(circle.message, /is a symbolic link in a circle/);
  const folder = await failsWith("source-not-a-file", new LocalFileBackend(directory).probe(1));
  assert.match(folder.message, /is a directory/);
  await failsWith("source-not-a-file", new LocalFileBackend("/dev/null").probe(1));
});

void test("a file that may not be read is an error that names the user", async () => {
  await chmod(directory, 0o755);
  await chmod(path, 0);
  // Root may read anything: the child gives that up.
  const drop = process.getuid?.() === 0 ? "process.setgid(65534); process.setuid(65534);" : "";
  const script = `
    import { LocalFileBackend } from "${import.meta.dirname}/../../src/backend/file/localfs.ts";
    ${drop}
    await new LocalFileBackend("${path}").probe(1).catch((error) => console.log(error.code, error.hint));`;
  const output = execFileSync(process.execPath, ["--input-type=module", "-e", script], { encoding: "utf8" });
  assert.match(output, /^source-denied make it readable for the user that ullage runs as \(uid \d+\)/);
});

void test("a pipe is refused without waiting for a writer", async () => {
  const pipe = join(directory, "pipe");
  execFileSync("mkfifo", [pipe]);
  await failsWith("source-not-a-file", new LocalFileBackend(pipe).probe(1));
});

void test("a file that comes back can be read again", async () => {
  const backend = new LocalFileBackend(path);
  const { identity } = await backend.probe(0);
  const away = join(directory, "away");
  await mkdir(away);
  await rename(path, join(away, "disk.img"));
  await failsWith("source-not-found", readBytes(backend, identity, 0, 10));
  await writeFile(path, "back again");
  const again = await backend.probe(0);
  assert.equal((await readBytes(backend, again.identity, 0, 10)).toString(), "back again");
});

void test("what the sink throws reaches the caller as it is", async () => {
  const backend = new LocalFileBackend(path);
  const { identity } = await backend.probe(0);
  const full = new IoError("ENOSPC", "cache is full");
  const failing = [
    (): void => {
      throw full;
    },
    (): Promise<void> => Promise.reject(full),
    (): Promise<void> => Promise.reject(Object.assign(new Error("from fs"), { code: "ENOENT", syscall: "open" })),
  ];
  await assert.rejects(backend.read(identity, 0, 10, failing[0]), full);
  await assert.rejects(backend.read(identity, 0, 10, failing[1]), full);
  await assert.rejects(backend.read(identity, 0, 10, failing[2]), /from fs/);
});

void test("an aborted read ends with the signal's reason, a closed backend with its own", async () => {
  const backend = new LocalFileBackend(path);
  const { identity } = await backend.probe(0);
  const controller = new AbortController();
  const reason = new Error("not needed any more");
  const reading = backend.read(identity, 0, content.length, () => controller.abort(reason), {
    signal: controller.signal,
  });
  await assert.rejects(reading, reason);
  await failsWith(
    "source-closed",
    backend.read(identity, 0, content.length, () => backend.close()),
  );
  await failsWith("source-closed", backend.probe(1));
});

void test("a descriptor is shared by reads that follow each other, and left behind by none that failed, by time or by close", async () => {
  const target = (fd: string): Promise<string> => readlink(`/proc/self/fd/${fd}`).catch(() => "closed meanwhile");
  const openOnes = async (): Promise<number> => {
    const targets = await Promise.all((await readdir("/proc/self/fd")).map(target));
    return targets.filter((name) => name.startsWith(path)).length;
  };
  const backend = new LocalFileBackend(path);
  const { identity } = await backend.probe(0);
  for (let n = 0; n < 3; n++) await readBytes(backend, identity, n, 100);
  assert.equal(await openOnes(), 1);
  await assert.rejects(
    backend.read(identity, 0, 100, () => {
      throw new Error("no");
    }),
  );
  assert.equal(await openOnes(), 0);
  await failsWith("source-changed", readBytes(backend, { ...identity, version: "other" }, 0, 100));
  assert.equal(await openOnes(), 0);
  await Promise.all(Array.from({ length: 8 }, (_, n) => readBytes(backend, identity, n, 2_000_000)));
  assert.equal(await openOnes(), 1);
  while ((await openOnes()) > 0) await new Promise((resolve) => setTimeout(resolve, 50)); // ends, or the test's time does
  await readBytes(backend, identity, 0, 100);
  await backend.close();
  assert.equal(await openOnes(), 0);
});

void test("durability rule 31: reads of two identities at once have a descriptor each", async () => {
  const backend = new LocalFileBackend(path);
  const old = await backend.probe(0);
  await readBytes(backend, old.identity, 0, 10);
  await rm(path);
  await writeFile(path, pattern(content.length, 2));
  const { identity } = await backend.probe(0);
  const [first, second] = await Promise.allSettled([
    readBytes(backend, old.identity, 0, 100),
    readBytes(backend, identity, 0, 100),
  ]);
  assert.equal(first.status, "rejected");
  assert.deepEqual(second.status === "fulfilled" && second.value, pattern(content.length, 2).subarray(0, 100));
});

void test("a block device has its own size, and is pinned only when nobody can write to it", async (t) => {
  if (!requireTool(t, "losetup", "root", "loop")) return;
  await truncate(path, 2_500_096);
  for (const flags of [[], ["--read-only"]]) {
    const device = execFileSync("losetup", ["--find", "--show", ...flags, path], { encoding: "utf8" }).trim();
    try {
      const backend = new LocalFileBackend(device);
      const { identity, head } = await backend.probe(512);
      assert.equal(identity.size, 2_500_096);
      assert.equal(identity.strong, flags.length > 0);
      assert.deepEqual(head, content.subarray(0, 512));
      const tail = await readBytes(backend, identity, 2_499_000, 1_001);
      assert.deepEqual(tail, content.subarray(2_499_000));
      await backend.tellZeros(identity, 0, identity.size, (length, zero) => {
        assert.deepEqual([length, zero], [identity.size, false], "a device can't be asked for holes");
      });
    } finally {
      execFileSync("losetup", ["--detach", device]);
    }
  }
});
