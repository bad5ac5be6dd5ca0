import assert from "node:assert/strict";
import { test } from "node:test";
import type { File, FileSystem } from "../../src/base/file-system.ts";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { OracleError } from "./oracle-error.ts";
import { Oracle, stamp } from "./oracle.ts";
import { SimDisk } from "./sim-disk.ts";
import { SimScheduler } from "./sim-scheduler.ts";

const zeros = Buffer.alloc(512);
const content = (name: number): Buffer => stamp(name, 0, 512);
const newOracle = (): Oracle => new Oracle(() => zeros);

/** Writes sector 0, answered. */
function write(oracle: Oracle, name: number): void {
  oracle.settle(oracle.issue(0, 512, content(name)), true);
}

function flush(oracle: Oracle): void {
  oracle.flushDone(oracle.flushStart());
}

/** Which of the contents (0: zeros) a read of sector 0 may show. */
function allowed(make: () => Oracle, names: number[]): number[] {
  return names.filter((name) => {
    const oracle = make();
    try {
      oracle.readDone(oracle.readStart(0, 512), name === 0 ? zeros : content(name));
      return true;
    } catch (error) {
      if (error instanceof OracleError) return false;
      throw error;
    }
  });
}

void test("a live volume shows what was answered last", () => {
  const make = (): Oracle => {
    const oracle = newOracle();
    write(oracle, 1);
    write(oracle, 2);
    return oracle;
  };
  assert.deepEqual(allowed(make, [0, 1, 2]), [2]);
});

void test("overlapping writes may end in either order; a failed one may have happened or not", () => {
  const overlapping = (): Oracle => {
    const oracle = newOracle();
    const one = oracle.issue(0, 512, content(1));
    const two = oracle.issue(0, 512, content(2));
    oracle.settle(two, true);
    oracle.settle(one, true);
    return oracle;
  };
  assert.deepEqual(allowed(overlapping, [0, 1, 2]), [1, 2]);
  const failed = (): Oracle => {
    const oracle = newOracle();
    write(oracle, 1);
    oracle.settle(oracle.issue(0, 512, content(2)), false);
    return oracle;
  };
  assert.deepEqual(allowed(failed, [0, 1, 2]), [1, 2]);
});

void test("a read beside a write may show a sector in parts where the page cache is real, and only there and then", () => {
  const mix = Buffer.concat([content(1).subarray(0, 200), content(2).subarray(200)]);
  const show = (tears: boolean, bytes: Buffer, moment: "beside" | "behind" | "across"): void => {
    const oracle = new Oracle(() => zeros, { tears });
    write(oracle, 1);
    const operation = oracle.issue(0, 512, content(2));
    if (moment === "behind") oracle.settle(operation, true);
    const read = oracle.readStart(0, 512);
    if (moment === "across") oracle.settle(operation, true);
    oracle.readDone(read, bytes);
    // However the sector looked meanwhile: once the write has been answered, it has happened.
    if (moment === "beside") oracle.settle(operation, true);
    assert.throws(() => oracle.readDone(oracle.readStart(0, 512), mix), OracleError);
    oracle.readDone(oracle.readStart(0, 512), content(2));
  };
  show(true, mix, "beside");
  show(true, mix, "across");
  assert.throws(() => show(true, mix, "behind"), OracleError, "nothing is being written any more");
  assert.throws(() => show(false, mix, "beside"), OracleError, "the simulated disk does not tear a sector");
  assert.throws(() => show(true, content(3), "beside"), OracleError, "bytes that nobody wrote");
  const failed = new Oracle(() => zeros, { tears: true });
  failed.settle(failed.issue(0, 512, content(1)), false);
  const half = Buffer.concat([content(1).subarray(0, 200), zeros.subarray(200)]);
  assert.throws(() => failed.readDone(failed.readStart(0, 512), half), OracleError, "it failed, and runs no more");
});

void test("kill -9 loses nothing that was answered; what was under way may have happened", () => {
  const make = (): Oracle => {
    const oracle = newOracle();
    write(oracle, 1);
    oracle.issue(0, 512, content(2));
    oracle.crash("nothing");
    return oracle;
  };
  assert.deepEqual(allowed(make, [0, 1, 2]), [1, 2]);
});

void test("a power cut may go back to the last flush, not behind it (durability rule 26)", () => {
  const make = (): Oracle => {
    const oracle = newOracle();
    write(oracle, 1);
    write(oracle, 2);
    flush(oracle);
    write(oracle, 3);
    oracle.settle(oracle.issue(0, 512, undefined), true);
    write(oracle, 4);
    oracle.crash("unflushed");
    return oracle;
  };
  assert.deepEqual(allowed(make, [0, 1, 2, 3, 4]), [0, 2, 3, 4]);
});

void test("a flush covers what was answered before it began, not what came while it ran", () => {
  const make = (): Oracle => {
    const oracle = newOracle();
    write(oracle, 1);
    const running = oracle.flushStart();
    write(oracle, 2);
    oracle.flushDone(running);
    oracle.crash("unflushed");
    return oracle;
  };
  assert.deepEqual(allowed(make, [0, 1, 2]), [1, 2]);
});

void test("what was read after a power cut is on the disk: a second one does not take it back", () => {
  const make = (): Oracle => {
    const oracle = newOracle();
    write(oracle, 1);
    flush(oracle);
    write(oracle, 2);
    oracle.crash("unflushed");
    oracle.readDone(oracle.readStart(0, 512), content(1));
    oracle.crash("unflushed");
    return oracle;
  };
  assert.deepEqual(allowed(make, [0, 1, 2]), [1]);
});

void test("a read of a part settles nothing when several contents look alike there", () => {
  const oracle = newOracle();
  oracle.settle(oracle.issue(0, 512, Buffer.alloc(512, "x").fill(0, 256)), true);
  oracle.crash("unflushed");
  oracle.readDone(oracle.readStart(300, 10), zeros.subarray(0, 10));
  oracle.readDone(oracle.readStart(0, 512), zeros);
});

void test("a read settles what an undecided sector holds", () => {
  const make = (): Oracle => {
    const oracle = newOracle();
    oracle.settle(oracle.issue(0, 512, content(1)), false);
    oracle.readDone(oracle.readStart(0, 512), content(1));
    return oracle;
  };
  assert.deepEqual(allowed(make, [0, 1]), [1]);
});

void test("a read may show what was there when it began, whatever was flushed meanwhile", () => {
  const oracle = newOracle();
  write(oracle, 1);
  const read = oracle.readStart(0, 512);
  write(oracle, 2);
  flush(oracle);
  oracle.readDone(read, content(1));
});

void test("a write to a part of a sector keeps the rest", () => {
  const oracle = newOracle();
  write(oracle, 1);
  oracle.settle(oracle.issue(100, 50, Buffer.alloc(50, "x")), true);
  const expected = Buffer.from(content(1)).fill("x", 100, 150);
  oracle.readDone(oracle.readStart(0, 512), expected);
  const read = oracle.readStart(0, 512);
  assert.throws(() => oracle.readDone(read, content(1)), OracleError);
});

// ---- a toy engine with a known fault must be caught -----------------------------------------------------------------

const blockBytes = 4096;
const blocks = 8;

/**
 * Blocks in a head file, one log entry per block: [lsn, block] as 16 bytes. A commit is [lsn of the cut, 1000].
 * `coversAll`: commits carry the highest LSN at the time of the commit instead of the cut taken before the sync.
 */
class ToyEngine {
  readonly #head: File;
  readonly #log: File;
  readonly #coversAll: boolean;
  readonly owned = new Set<number>();
  #lsn = 0;
  #end = 0;
  readonly #entry = new IoBuffer(16);

  constructor(head: File, log: File, coversAll: boolean) {
    this.#head = head;
    this.#log = log;
    this.#coversAll = coversAll;
  }

  static async start(fs: FileSystem, coversAll: boolean): Promise<ToyEngine> {
    const mode = (await fs.exists("/log")) ? "write" : "create";
    const engine = new ToyEngine(await fs.open("/head", mode), await fs.open("/log", mode), coversAll);
    if (mode === "create") await fs.syncDirectory("/");
    else await engine.#recover(fs);
    return engine;
  }

  write(block: number, data: IoBuffer): void {
    this.#head.writeNow(data, 0, blockBytes, block * blockBytes);
    this.#append(++this.#lsn, block);
    this.owned.add(block);
  }

  async flush(): Promise<void> {
    const cut = this.#lsn;
    await this.#head.datasync();
    this.#append(this.#coversAll ? this.#lsn : cut, 1000);
    await this.#log.datasync();
  }

  async read(block: number): Promise<Buffer> {
    // What the head does not own is an image's.
    const buffer = IoBuffer.from(stamp(0, block * blockBytes, blockBytes));
    if (this.owned.has(block)) await this.#head.read(buffer, 0, blockBytes, block * blockBytes);
    return buffer.bytes;
  }

  #append(lsn: number, block: number): void {
    this.#entry.bytes.writeDoubleLE(lsn, 0);
    this.#entry.bytes.writeDoubleLE(block, 8);
    this.#log.writeNow(this.#entry, 0, 16, this.#end);
    this.#end += 16;
  }

  async #recover(fs: FileSystem): Promise<void> {
    const bytes = await fs.readFile("/log");
    const entries: { lsn: number; block: number }[] = [];
    for (let at = 0; at + 16 <= bytes.length; at += 16) {
      entries.push({ lsn: bytes.readDoubleLE(at), block: bytes.readDoubleLE(at + 8) });
    }
    const cut = Math.max(0, ...entries.filter(({ block }) => block === 1000).map(({ lsn }) => lsn));
    for (const { lsn, block } of entries) if (lsn > 0 && lsn <= cut && block < 1000) this.owned.add(block);
  }
}

async function toyLife(seed: number, coversAll: boolean): Promise<void> {
  const scheduler = new SimScheduler(seed);
  const disk = new SimDisk(scheduler);
  const oracle = new Oracle((sector) => stamp(0, sector * 512, 512));
  const engine = await scheduler.complete(ToyEngine.start(disk.start(), coversAll));
  const writer = async (): Promise<void> => {
    for (let name = 1; name <= blocks; name++) {
      await scheduler.pause("think");
      const offset = (name - 1) * blockBytes;
      const data = IoBuffer.from(stamp(name, offset, blockBytes));
      const operation = oracle.issue(offset, blockBytes, data.bytes);
      engine.write(name - 1, data);
      oracle.settle(operation, true);
    }
  };
  const flusher = async (): Promise<void> => {
    for (let turn = 0; turn < 2; turn++) {
      await scheduler.pause("think");
      const token = oracle.flushStart();
      await engine.flush();
      oracle.flushDone(token);
    }
  };
  disk.crashAfter(scheduler.random.between(5, 30));
  await scheduler.run(Promise.all([writer(), flusher()]));
  oracle.crash("unflushed");
  disk.powerCut();
  const recovered = await scheduler.complete(ToyEngine.start(disk.start(), coversAll));
  for (let block = 0; block < blocks; block++) {
    const read = oracle.readStart(block * blockBytes, blockBytes);
    oracle.readDone(read, await scheduler.complete(recovered.read(block)));
  }
}

void test("a log whose commits cover records without synced data is caught (durability rule 1)", async () => {
  let caught = 0;
  for (let seed = 1; seed <= 300; seed++) {
    await toyLife(seed, true).catch((error: unknown) => {
      assert.ok(error instanceof OracleError, String(error));
      caught++;
    });
  }
  assert.ok(caught > 0, "none of 300 seeds found it");
});

void test("the same log with the cut taken before the sync passes", async () => {
  for (let seed = 1; seed <= 300; seed++) await toyLife(seed, false);
});
