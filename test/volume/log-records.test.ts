import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { test, type TestContext } from "node:test";
import { CorruptionError } from "../../src/base/errors.ts";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { realFileSystem } from "../../src/base/real-file-system.ts";
import { decodeLogHeader, generationSeed, IntentLog } from "../../src/volume/log/intent-log.ts";
import { volumeLimits } from "../../src/volume/limits.ts";
import { type LogContents, readLog, readLogHeader } from "../../src/volume/log/log-reader.ts";
import { recordBytes, RecordType, RecordView } from "../../src/volume/log/log-record.ts";
import { logPath } from "../../src/volume/paths.ts";
import { newId, type TestEnvironment, volumeEnvironment } from "../support/volume-env.ts";
import { failing, FaultyFileSystem, ofLog } from "./faulty-file-system.ts";

const limits = volumeLimits({ logReserveBytes: 8192, logExtendBytes: 16384 });

interface TestLog {
  env: TestEnvironment;
  log: IntentLog;
  path: string;
  faulty: FaultyFileSystem;
}

async function newLog(t: TestContext, number = 1, from?: TestLog): Promise<TestLog> {
  const faulty = from?.faulty ?? new FaultyFileSystem();
  const env = from?.env ?? volumeEnvironment(t, { fs: faulty.fs });
  const log = await IntentLog.create(
    env,
    env.dataDir,
    { volumeId: newId(), number, predecessor: undefined, strays: false },
    limits,
  );
  t.after(() => log.file.close());
  return { env, log, path: logPath(env.dataDir, number), faulty };
}

interface Replay extends LogContents {
  sets: string[];
}

async function replay(path: string, before = 0, until = Infinity): Promise<Replay> {
  const file = await realFileSystem.open(path, "read");
  try {
    const header = await readLogHeader(file);
    const sets: string[] = [];
    const contents = await readLog(file, header, before, until, {
      set: (lsn, owner, start, count) => void sets.push(`${lsn}: ${start}+${count} = ${owner}`),
    });
    return { ...contents, sets };
  } finally {
    await file.close();
  }
}

const set = (log: IntentLog, block: number): number => log.append(RecordType.set, 1, block, 1, false);
const commit = (log: IntentLog): number => log.append(RecordType.commit, 0, log.lastLsn, log.durableLsn, true);
/** Where record number n, from 0, is. */
const place = (n: number): number => 4096 + n * recordBytes;

function damage(path: string, at: number, how: (bytes: Buffer) => void = (bytes) => (bytes[at] ^= 1)): void {
  const bytes = readFileSync(path);
  how(bytes);
  writeFileSync(path, bytes);
}

void test("records come back in order, with numbers up to 2^53", async (t) => {
  const { log, path } = await newLog(t);
  log.begin(2 ** 45);
  log.append(RecordType.set, 0xfffe, 2 ** 40 + 5, 2 ** 33, false);
  log.append(RecordType.clients, 1, 0, 0, true);
  log.append(RecordType.commit, 0, 2 ** 45 + 2, 2 ** 45, true);
  log.append(RecordType.set, 0, 0, 1, false);
  const found = await replay(path, 2 ** 45);
  assert.deepEqual(found.sets, [`${2 ** 45 + 1}: ${2 ** 40 + 5}+${2 ** 33} = 65534`, `${2 ** 45 + 4}: 0+1 = 0`]);
  assert.equal(found.cut, 2 ** 45 + 2);
  assert.equal(found.remoteWriters, true);
  assert.equal(found.lastLsn, 2 ** 45 + 4);
  assert.equal(found.ended, false);
});

void test("a log longer than the reader's window comes back whole", async (t) => {
  const { log, path } = await newLog(t);
  const count = 60_000;
  for (let n = 0; n < count; n++) set(log, n);
  const found = await replay(path);
  assert.equal(found.sets.length, count);
  assert.equal(found.sets.at(-1), `${count}: ${count - 1}+1 = 1`);
});

void test("records above the LSN where an earlier recovery stopped do not count", async (t) => {
  const { log, path } = await newLog(t);
  for (let n = 0; n < 10; n++) set(log, n);
  const found = await replay(path, 0, 4);
  assert.equal(found.lastLsn, 4);
  assert.equal(found.sets.length, 4);
});

void test("nothing behind the end record counts", async (t) => {
  const { log, path } = await newLog(t);
  set(log, 1);
  log.append(RecordType.end, 0, 0, 0, true);
  set(log, 2);
  const found = await replay(path);
  assert.equal(found.ended, true);
  assert.deepEqual(found.sets, ["1: 1+1 = 1"]);
});

void test("rule 9: a tail torn at any byte ends the replay there, whatever was appended behind it", async (t) => {
  const { log, path } = await newLog(t);
  for (let n = 0; n < 3; n++) set(log, n);
  const whole = readFileSync(path);
  for (let length = place(0); length < place(3); length++) {
    writeFileSync(path, whole.subarray(0, length));
    const found = await replay(path);
    assert.equal(found.sets.length, Math.floor((length - 4096) / recordBytes));
    writeFileSync(path, Buffer.concat([whole.subarray(0, length), Buffer.alloc(whole.length - length, 0xff)]));
    assert.equal((await replay(path)).sets.length, Math.floor((length - 4096) / recordBytes));
  }
});

void test("rule 9: no single damaged byte of a record lets it count, nor any record behind it", async (t) => {
  const { log, path } = await newLog(t);
  for (let n = 0; n < 4; n++) set(log, n);
  const whole = readFileSync(path);
  for (let at = place(2); at < place(3); at++) {
    for (let bit = 0; bit < 8; bit++) {
      const bytes = Buffer.from(whole);
      bytes[at] ^= 1 << bit;
      writeFileSync(path, bytes);
      assert.equal((await replay(path)).sets.length, 2, `byte ${at - place(2)}, bit ${bit}`);
    }
  }
});

void test("rule 9: pages lost before a commit that was never durable are a torn tail, not damage", async (t) => {
  const { log, path } = await newLog(t);
  for (let n = 0; n < 300; n++) set(log, n);
  commit(log); // its durable LSN is 0: nothing says that these records had been synced
  damage(path, 0, (bytes) => bytes.fill(0, place(10), place(250)));
  const found = await replay(path);
  assert.equal(found.lastLsn, 10);
  assert.equal(found.cut, -1, "the commit behind the gap does not count");
});

void test("rule 9: a bad record that a later commit proves durable is damage and refused", async (t) => {
  const { log, path } = await newLog(t);
  for (let n = 0; n < 20; n++) set(log, n);
  commit(log);
  await log.sync();
  for (let n = 0; n < 20; n++) set(log, n);
  commit(log); // says that LSN 21 was durable
  const whole = readFileSync(path);
  damage(path, place(5));
  await assert.rejects(
    replay(path),
    (error: Error) => error instanceof CorruptionError && /LSN 6 .*LSN 21/.test(error.message),
  );
  writeFileSync(path, whole);
  damage(path, place(20));
  await assert.rejects(replay(path), CorruptionError, "LSN 21 is the last one proven");
  writeFileSync(path, whole);
  damage(path, place(21));
  assert.equal((await replay(path)).lastLsn, 21, "LSN 22 is not proven: a torn tail");
});

void test("rule 9: the proof is found however far behind the damage it stands", async (t) => {
  const { log, path } = await newLog(t);
  for (let n = 0; n < 70_000; n++) set(log, n);
  await log.sync();
  commit(log);
  damage(path, place(3));
  await assert.rejects(replay(path), CorruptionError);
});

void test("rule 8: records of another generation never count, though they stand where the next one would", async (t) => {
  const first = await newLog(t, 1);
  for (let n = 0; n < 6; n++) set(first.log, n);
  const second = await newLog(t, 2, first);
  for (let n = 0; n < 3; n++) set(second.log, n);
  const bytes = readFileSync(second.path);
  readFileSync(first.path).copy(bytes, place(3), place(3), place(6));
  writeFileSync(second.path, bytes);
  assert.equal((await replay(second.path)).lastLsn, 3);
});

void test("rule 8: records of the same generation count only in their chain", async (t) => {
  const { log, path } = await newLog(t);
  for (let n = 0; n < 6; n++) set(log, n);
  damage(path, 0, (bytes) => bytes.copy(bytes, place(2), place(3), place(6)));
  assert.equal((await replay(path)).lastLsn, 2, "LSN 3 is missing");
  assert.equal((await replay(path, 5)).sets.length, 0, "the log must go on where the one before it ended");
  // The same LSN twice, with another predecessor: what a recycled region would look like.
  const view = new IoBuffer(recordBytes);
  const { generation } = decodeLogHeader(readFileSync(path), path);
  new RecordView(view.bytes).encode(0, generationSeed(generation), 12345, 3, RecordType.set, 1, 99, 1);
  damage(path, 0, (bytes) => view.bytes.copy(bytes, place(2)));
  assert.equal((await replay(path)).lastLsn, 2);
});

void test("rule 8: after a failed append the next one takes its place, and nothing of it is left", async (t) => {
  const { log, path, faulty } = await newLog(t);
  set(log, 0);
  let failures = 0;
  faulty.before = (call) => {
    if (call.name !== "write" || call.length !== recordBytes) return undefined;
    failures++;
    writeFileSync(path, Buffer.concat([readFileSync(path).subarray(0, place(1)), Buffer.alloc(17, 0xff)])); // short
    return failing("ENOSPC", () => true)(call);
  };
  assert.throws(() => set(log, 1), { errno: "ENOSPC" });
  assert.equal(failures, 1);
  assert.equal(log.lastLsn, 1, "the LSN is not used up");
  assert.equal(readFileSync(path).length, place(1), "the file is cut back");
  faulty.before = () => undefined;
  set(log, 2);
  set(log, 3);
  assert.deepEqual((await replay(path)).sets, ["1: 0+1 = 1", "2: 2+1 = 1", "3: 3+1 = 1"]);
});

void test("rule 8: a log that can't be cut back takes no more records", async (t) => {
  const { log, path, faulty } = await newLog(t);
  set(log, 0);
  faulty.before = failing("EIO", (call) => ofLog(call) && (call.name === "truncate" || call.length === recordBytes));
  assert.throws(() => set(log, 1), { errno: "EIO" });
  assert.equal(log.broken, true);
  faulty.before = () => undefined;
  assert.throws(() => set(log, 2), /can't be cut back/);
  assert.equal((await replay(path)).lastLsn, 1);
});

void test("rule 22: the reserve takes privileged records on a full disk, and no others", async (t) => {
  const { log, path, faulty } = await newLog(t);
  set(log, 0);
  faulty.before = failing("ENOSPC", (call) => call.name === "write" && call.length > recordBytes);
  let appended = 1;
  for (;;) {
    try {
      set(log, appended);
    } catch {
      break;
    }
    appended++;
  }
  const room = Math.floor(limits.logReserveBytes / recordBytes);
  for (let n = 0; n < room; n++) log.append(RecordType.set, 0, n, 1, true);
  assert.equal(log.reserveInUse, true);
  faulty.before = () => undefined;
  set(log, 7);
  assert.equal(log.reserveInUse, false, "space came back");
  assert.equal((await replay(path)).sets.length, appended + room + 1);
});

void test("rule 22: while the disk has space, privileged records leave the reserve alone", async (t) => {
  const { log } = await newLog(t);
  const records = Math.ceil((2 * (limits.logReserveBytes + limits.logExtendBytes)) / recordBytes);
  for (let n = 0; n < records; n++) {
    log.append(RecordType.set, 0, n, 1, true);
    assert.equal(log.reserveInUse, false, `after ${n + 1} records`);
  }
});

void test("a header says to whom the log belongs; damaged, short or foreign headers are refused", async (t) => {
  const { env, path } = await newLog(t);
  const whole = readFileSync(path);
  const header = decodeLogHeader(whole, path);
  assert.equal(header.number, 1);
  assert.deepEqual(header.predecessor, undefined);
  const binding = await realFileSystem.open(path, "read").then(async (file) => {
    const found = file.binding();
    await file.close();
    return found;
  });
  assert.deepEqual(header.binding, binding);
  for (let at = 0; at < 4096; at++) {
    const bytes = Buffer.from(whole.subarray(0, 4096));
    bytes[at] ^= 0x10;
    assert.throws(() => decodeLogHeader(bytes, path), { name: /CorruptionError|UllageError/ });
  }
  for (const length of [0, 100, 4095])
    assert.throws(() => decodeLogHeader(whole.subarray(0, length), path), CorruptionError);
  const fields = { volumeId: newId(), number: 2, predecessor: { lsn: 77, durable: true }, strays: true };
  const next = await IntentLog.create(env, env.dataDir, fields, limits);
  t.after(() => next.file.close());
  const { predecessor, strays, volumeId } = decodeLogHeader(readFileSync(logPath(env.dataDir, 2)), "x");
  assert.deepEqual({ number: 2, predecessor, strays, volumeId }, fields);
});
