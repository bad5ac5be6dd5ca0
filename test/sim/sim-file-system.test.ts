import assert from "node:assert/strict";
import { test } from "node:test";
import type { File, FileSystem } from "../../src/base/file-system.ts";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { IoError } from "../../src/base/errors.ts";
import { SimDisk, type SimDiskOptions } from "./sim-disk.ts";
import { SimScheduler } from "./sim-scheduler.ts";

// Each test shows that the simulated disk can produce a state that was seen on a real one (docs/DURABILITY.md lists the
// experiments), and that it never loses what a sync covered.

const page = 4096;

interface World {
  scheduler: SimScheduler;
  disk: SimDisk;
  fs: FileSystem;
}

function world(seed: number, options: Partial<SimDiskOptions> = {}): World {
  const scheduler = new SimScheduler(seed);
  const disk = new SimDisk(scheduler, { coldReads: 0, ...options });
  return { scheduler, disk, fs: disk.start() };
}

/** Runs a scenario under many seeds. @returns how often each outcome came */
async function outcomes(scenario: (seed: number) => Promise<string>, seeds = 300): Promise<Map<string, number>> {
  const counts = new Map<string, number>();
  for (let seed = 1; seed <= seeds; seed++) {
    const outcome = await scenario(seed);
    counts.set(outcome, (counts.get(outcome) ?? 0) + 1);
  }
  return counts;
}

function filled(letter: string, length = page): IoBuffer {
  const buffer = new IoBuffer(length);
  buffer.bytes.fill(letter);
  return buffer;
}

/** One letter per page: what is in it, `.` for zeros, `?` for a mixture. */
async function show(w: World, path: string): Promise<string> {
  const bytes = await w.scheduler.complete(w.fs.readFile(path));
  let text = "";
  for (let at = 0; at < bytes.length; at += page) {
    const part = bytes.subarray(at, at + page);
    const same = part.every((byte) => byte === part[0]);
    text += !same ? "?" : part[0] === 0 ? "." : String.fromCharCode(part[0]);
  }
  return text;
}

/** A durable file in a durable directory. */
async function durableFile(w: World, path: string, content: string): Promise<File> {
  const file = await w.scheduler.complete(w.fs.open(path, "create"));
  for (let index = 0; index < content.length; index++) file.writeNow(filled(content[index]), 0, page, index * page);
  await w.scheduler.complete(file.datasync());
  await w.scheduler.complete(w.fs.syncDirectory("/"));
  return file;
}

function restart(w: World): void {
  w.fs = w.disk.start();
}

void test("what a completed datasync covered survives every power cut", async () => {
  const seen = await outcomes(async (seed) => {
    const w = world(seed);
    const file = await durableFile(w, "/f", "abc");
    file.writeNow(filled("x"), 0, page, page);
    await w.scheduler.complete(file.datasync());
    w.disk.powerCut();
    restart(w);
    return show(w, "/f");
  }, 50);
  assert.deepEqual([...seen.keys()], ["axc"]);
});

void test("pages that no sync covered survive in any combination (E10)", async () => {
  const seen = await outcomes(async (seed) => {
    const w = world(seed);
    const file = await durableFile(w, "/log", "a");
    for (let index = 1; index <= 5; index++) file.writeNow(filled("n"), 0, page, index * page);
    w.disk.powerCut();
    restart(w);
    return show(w, "/log");
  }, 600);
  assert.ok(seen.has("a....n"), "a late page without the earlier ones");
  assert.ok(seen.has("a") && seen.has("annnnn"), "nothing and everything");
  assert.ok([...seen.keys()].some((text) => text.startsWith("an") && text.endsWith(".n")));
});

void test("a write that arrives during a running datasync may miss it, and its record in another file may not (E1)", async () => {
  const seen = await outcomes(async (seed) => {
    const w = world(seed);
    const head = await durableFile(w, "/head", "oo");
    const log = await durableFile(w, "/log", "o");
    head.writeNow(filled("A"), 0, page, 0);
    const sync = head.datasync();
    await w.scheduler.complete(w.scheduler.pause("sync runs"));
    head.writeNow(filled("B"), 0, page, page);
    log.writeNow(filled("r"), 0, page, 0);
    await w.scheduler.complete(sync);
    await w.scheduler.complete(log.datasync());
    w.disk.powerCut();
    restart(w);
    return `${await show(w, "/head")} ${await show(w, "/log")}`;
  });
  assert.deepEqual([...seen.keys()].sort(), ["A? r", "AB r", "Ao r"]);
});

void test("renames and unlinks that no directory sync covered are undone, or the unlink alone survives (E4e)", async () => {
  const seen = await outcomes(async (seed) => {
    const w = world(seed);
    await durableFile(w, "/map.1", "o");
    const file = await w.scheduler.complete(w.fs.open("/map.tmp", "create"));
    file.writeNow(filled("n"), 0, page, 0);
    await w.scheduler.complete(file.datasync());
    await w.scheduler.complete(w.fs.rename("/map.tmp", "/map.2"));
    await w.scheduler.complete(w.fs.unlink("/map.1"));
    w.disk.powerCut();
    restart(w);
    return (await w.scheduler.complete(w.fs.readdir("/"))).sort().join(" ");
  });
  assert.deepEqual([...seen.keys()].sort(), ["", "map.1", "map.1 map.2", "map.1 map.tmp", "map.2", "map.tmp"]);
});

void test("a rename replaces its target as a whole", async () => {
  const seen = await outcomes(async (seed) => {
    const w = world(seed);
    await durableFile(w, "/one", "1");
    await durableFile(w, "/two", "2");
    await w.scheduler.complete(w.fs.rename("/one", "/two"));
    w.disk.powerCut();
    restart(w);
    return (await w.scheduler.complete(w.fs.readdir("/"))).sort().join(" ") + (await show(w, "/two"));
  });
  assert.deepEqual([...seen.keys()].sort(), ["one two2", "two1"]);
});

void test("a new file without a directory sync may be gone although it was synced", async () => {
  const seen = await outcomes(async (seed) => {
    const w = world(seed);
    const file = await w.scheduler.complete(w.fs.open("/f", "create"));
    await w.scheduler.complete(file.datasync());
    w.disk.powerCut();
    restart(w);
    return String(await w.scheduler.complete(w.fs.exists("/f")));
  }, 50);
  assert.deepEqual([...seen.keys()].sort(), ["false", "true"]);
});

void test("a punch may be durable without any sync, and before an earlier log record (E4g, E14)", async () => {
  const seen = await outcomes(async (seed) => {
    const w = world(seed);
    const layer = await durableFile(w, "/layer", "old");
    const log = await durableFile(w, "/log", "-");
    log.writeNow(filled("r"), 0, page, 0);
    layer.punchNow(page, page);
    w.disk.powerCut();
    restart(w);
    return `${await show(w, "/layer")} ${await show(w, "/log")}`;
  });
  assert.deepEqual([...seen.keys()].sort(), ["o.d -", "o.d ?", "o.d r", "old -", "old ?", "old r"]);
});

void test("a full disk leaves the beginning of an append (E7), and takes it whole once space returns", async () => {
  const w = world(1, { capacityPages: 3 });
  const file = await durableFile(w, "/log", "ab");
  const record = filled("r", 6000);
  assert.throws(() => file.writeNow(record, 0, 6000, 2 * page - 100), { name: "IoError", errno: "ENOSPC" });
  assert.equal(file.size(), 3 * page);
  w.disk.options.capacityPages = 10;
  file.writeNow(record, 0, 6000, 2 * page - 100);
  assert.equal(file.size(), 2 * page - 100 + 6000);
});

void test("space counts what is allocated: punched and unlinked pages come back", async () => {
  const w = world(1, { capacityPages: 10 });
  const file = await durableFile(w, "/f", "abc");
  const free = async (): Promise<number> => (await w.scheduler.complete(w.fs.space("/"))).free / page;
  assert.equal(await free(), 7);
  file.punchNow(0, page);
  assert.equal(await free(), 8);
  await w.scheduler.complete(w.fs.unlink("/f"));
  assert.equal(await free(), 8, "an open file keeps its space");
  await w.scheduler.complete(file.close());
  assert.equal(await free(), 10);
});

void test("a failed sync is told once per descriptor; the cache shows the lost data until it is dropped (E3)", async () => {
  const w = world(3, { syncErrors: 1 });
  w.disk.options.syncErrors = 0;
  const file = await durableFile(w, "/head", "o");
  const other = await w.scheduler.complete(w.fs.open("/head", "write"));
  file.writeNow(filled("n"), 0, page, 0);
  w.disk.options.syncErrors = 1;
  await assert.rejects(w.scheduler.complete(file.datasync()), IoError);
  w.disk.options.syncErrors = 0;
  await w.scheduler.complete(file.datasync());
  await assert.rejects(w.scheduler.complete(other.datasync()), IoError, "each descriptor is told");
  const late = await w.scheduler.complete(w.fs.open("/head", "write"));
  await w.scheduler.complete(late.datasync());
  w.disk.kill();
  restart(w);
  assert.equal(await show(w, "/head"), "n", "the lost data is still read");
  const again = await w.scheduler.complete(w.fs.open("/head", "read"));
  await w.scheduler.complete(again.datasync());
  assert.equal(await w.scheduler.complete(again.dropCache()), true);
  assert.equal(await show(w, "/head"), "o", "the disk never had it");
});

void test("a write-back error that nobody was told of is told to the next process (E3c)", async () => {
  const w = world(3);
  const file = await durableFile(w, "/head", "o");
  file.writeNow(filled("n"), 0, page, 0);
  w.disk.failWriteback(w.disk.namespace.inodes()[0]);
  w.disk.kill();
  restart(w);
  const again = await w.scheduler.complete(w.fs.open("/head", "write"));
  await assert.rejects(w.scheduler.complete(again.datasync()), IoError);
  await w.scheduler.complete(again.datasync());
});

void test("what failed write-back lost is not on the disk after a power cut, unless it was written again", async () => {
  const seen = await outcomes(async (seed) => {
    const w = world(seed);
    const file = await durableFile(w, "/head", "oo");
    file.writeNow(filled("l", 2 * page), 0, 2 * page, 0);
    w.disk.options.syncErrors = 1;
    await w.scheduler.complete(file.datasync()).catch(() => {});
    w.disk.options.syncErrors = 0;
    file.writeNow(filled("n"), 0, page, 0);
    await w.scheduler.complete(file.datasync());
    w.disk.powerCut();
    restart(w);
    return show(w, "/head");
  });
  assert.deepEqual([...seen.keys()].sort(), ["nl", "no"]);
});

void test("kill -9 keeps the page cache and the binding; a new mount or boot changes the binding (E1b)", async () => {
  const w = world(4);
  const file = await durableFile(w, "/f", "o");
  file.writeNow(filled("n"), 0, page, 0);
  const before = file.binding();
  const reopened = async (): Promise<File> => {
    restart(w);
    return w.scheduler.complete(w.fs.open("/f", "write"));
  };
  w.disk.kill();
  assert.deepEqual((await reopened()).binding(), before);
  assert.equal(await show(w, "/f"), "n");
  w.disk.restartContainer();
  const container = (await reopened()).binding();
  assert.notEqual(container.mountId, before.mountId);
  assert.equal(await show(w, "/f"), "n");
  w.disk.remount("nothing");
  const remounted = (await reopened()).binding();
  assert.notEqual(remounted.mountId, container.mountId);
  assert.deepEqual({ ...remounted, mountId: "" }, { ...before, mountId: "" });
  assert.equal(await show(w, "/f"), "o", "the page cache is gone without a new boot id");
  w.disk.powerCut();
  assert.notEqual((await reopened()).binding().bootId, before.bootId);
});

void test("calls waiting in the thread pool land or not when the process is killed, and never later", async () => {
  const seen = await outcomes(async (seed) => {
    const w = world(seed);
    const file = await durableFile(w, "/f", "oo");
    void file.write(filled("w", 2 * page), 0, 2 * page, 0);
    if (w.disk.random.chance(0.5)) await w.scheduler.complete(w.scheduler.pause("some time"));
    w.disk.kill();
    restart(w);
    const first = await show(w, "/f");
    await w.scheduler.complete(w.scheduler.pause("more time"));
    assert.equal(await show(w, "/f"), first);
    return first;
  });
  assert.deepEqual([...seen.keys()].sort(), ["oo", "wo", "ww"]);
});

void test("the process dies in the middle of any call, and what it does afterwards has no effect", async () => {
  const seen = await outcomes(async (seed) => {
    const w = world(seed);
    const file = await durableFile(w, "/f", "oooo");
    w.disk.crashAfter(2);
    file.writeNow(filled("1"), 0, page, 0);
    file.writeNow(filled("2", 2 * page), 0, 2 * page, page);
    file.writeNow(filled("3"), 0, page, 3 * page);
    const never = file.datasync();
    assert.equal(await w.scheduler.run(never), "halted");
    w.disk.kill();
    restart(w);
    return show(w, "/f");
  });
  assert.deepEqual([...seen.keys()].sort(), ["122o", "12oo", "1ooo"]);
});

void test("a read in the thread pool may see what happened after it was called, in its second half only too", async () => {
  const seen = await outcomes(async (seed) => {
    const w = world(seed);
    const file = await durableFile(w, "/f", "oo");
    const buffer = new IoBuffer(2 * page);
    const read = file.read(buffer, 0, 2 * page, 0);
    const punch = file.punch(0, 2 * page);
    await w.scheduler.complete(Promise.all([read, punch]));
    return [0, page].map((at) => (buffer.bytes[at] === 0 ? "." : "o")).join("");
  });
  assert.deepEqual([...seen.keys()].sort(), ["..", "o.", "oo"]);
});

void test("SEEK_DATA after a power cut tells what survived; in XFS mode a read spoils it (E11)", async () => {
  for (const seekClaimsReserved of [false, true]) {
    const w = world(5, { seekClaimsReserved });
    const head = await durableFile(w, "/head", "");
    w.disk.namespace.inodes();
    await w.scheduler.complete(head.truncate(64 * page));
    await w.scheduler.complete(head.datasync());
    for (let block = 0; block < 64; block++) head.writeNow(filled("n"), 0, page, block * page);
    w.disk.remount("mixed");
    restart(w);
    const file = await w.scheduler.complete(w.fs.open("/head", "write"));
    const claimed = (): string => {
      let text = "";
      for (let block = 0; block < 64; block++) text += file.seekData(block * page) === block * page ? "n" : ".";
      return text;
    };
    const before = claimed();
    const content = await show(w, "/head");
    assert.equal(before, content);
    assert.match(content, /n/);
    assert.match(content, /\./);
    assert.equal(claimed(), seekClaimsReserved ? "n".repeat(64) : content);
  }
});

void test("after kill -9 SEEK_DATA tells every written block, zeros too", async () => {
  const w = world(6);
  const head = await durableFile(w, "/head", "");
  await w.scheduler.complete(head.truncate(4 * page));
  head.writeNow(filled("\0"), 0, page, 2 * page);
  w.disk.kill();
  restart(w);
  const file = await w.scheduler.complete(w.fs.open("/head", "write"));
  assert.equal(file.seekData(0), 2 * page);
  assert.equal(file.seekHole(2 * page), 3 * page);
  assert.equal(file.seekData(3 * page), -1);
});

void test("extents that were never synced may show stale bytes where the file system is so", async () => {
  const scenario = (staleExtents: boolean) => async (seed: number) => {
    const w = world(seed, { staleExtents });
    const file = await durableFile(w, "/f", "");
    await w.scheduler.complete(file.truncate(page));
    await w.scheduler.complete(file.datasync());
    file.writeNow(filled("n"), 0, page, 0);
    w.disk.powerCut();
    restart(w);
    const text = await show(w, "/f");
    return "n.".includes(text) ? text : "stale";
  };
  assert.deepEqual([...(await outcomes(scenario(true))).keys()].sort(), [".", "n", "stale"]);
  assert.deepEqual([...(await outcomes(scenario(false))).keys()].sort(), [".", "n"]);
});

void test("an overwritten page may be torn between sectors, a first write is there as a whole or not at all", async () => {
  const scenario = (content: string) => async (seed: number) => {
    const w = world(seed);
    const file = await durableFile(w, "/f", content);
    file.writeNow(filled("n"), 0, page, 0);
    w.disk.powerCut("mixed");
    restart(w);
    return show(w, "/f");
  };
  assert.deepEqual([...(await outcomes(scenario("o"))).keys()].sort(), ["?", "n", "o"]);
  assert.deepEqual([...(await outcomes(scenario(""))).keys()].sort(), ["", ".", "n"]);
});

void test("one seed replays one schedule", async () => {
  const run = async (seed: number): Promise<string> => {
    const w = world(seed, { coldReads: 0.5, writeErrors: 0.1 });
    w.disk.options.writeErrors = 0;
    const file = await durableFile(w, "/f", "oooooooo");
    w.disk.options.writeErrors = 0.1;
    const trace: string[] = [];
    const client = async (name: string): Promise<void> => {
      for (let turn = 0; turn < 20; turn++) {
        const offset = w.scheduler.random.below(8) * page;
        await file.write(filled(name), 0, page, offset).catch((error: unknown) => trace.push(String(error)));
        trace.push(`${name}${offset / page}`);
      }
    };
    await w.scheduler.complete(Promise.all(["a", "b", "c"].map(client)));
    w.disk.powerCut();
    restart(w);
    return trace.join(" ") + (await show(w, "/f"));
  };
  assert.equal(await run(7), await run(7));
  assert.notEqual(await run(7), await run(8));
});

void test("virtual time stands still while anything can run, then jumps", async () => {
  const w = world(8);
  const order: string[] = [];
  const long = w.scheduler.clock.sleep(1000).then(() => order.push("slept"));
  const file = await durableFile(w, "/f", "abc");
  await w.scheduler.complete(file.datasync().then(() => order.push("synced")));
  assert.equal(w.scheduler.clock.now(), 0);
  await w.scheduler.complete(long);
  assert.deepEqual(order, ["synced", "slept"]);
  assert.equal(w.scheduler.clock.now(), 1000);
});

void test("waiting for something that nothing can bring about is reported", async () => {
  const w = world(9);
  await assert.rejects(w.scheduler.complete(new Promise(() => {})), /stalled/);
});

void test("locks exclude within a machine and end with their process", async () => {
  const w = world(10);
  await w.scheduler.complete(w.fs.mkdir("/d"));
  const lock = await w.scheduler.complete(w.fs.lockDirectory("/d"));
  await assert.rejects(w.scheduler.complete(w.fs.lockDirectory("/d")), { code: "locked" });
  await w.scheduler.complete(lock.release());
  await w.scheduler.complete(w.fs.lockDirectory("/d"));
  w.disk.kill();
  restart(w);
  await w.scheduler.complete(w.fs.lockDirectory("/d"));
});
