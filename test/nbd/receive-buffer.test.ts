import assert from "node:assert/strict";
import test from "node:test";
import { BufferPool, type Chunk } from "../../src/export/nbd/buffer-pool.ts";
import { ReceiveBuffer } from "../../src/export/nbd/receive-buffer.ts";
import { Random } from "../sim/random.ts";

const HEADER = 4;

/** A connection whose stream is messages, each its own length and then bytes that tell where they belong. */
class Stream {
  readonly buffer: ReceiveBuffer;
  readonly #pool: BufferPool;
  readonly #random: Random;
  readonly #key: number;
  #target: Buffer;
  #paused = false;
  #sent = 0;
  #message = Buffer.alloc(0);
  #expected = 0;
  messages = 0;
  readonly held: { chunk: Chunk; at: number; copy: Buffer }[] = [];

  constructor(pool: BufferPool, random: Random, key: number) {
    this.#pool = pool;
    this.#random = random;
    this.#key = key;
    this.buffer = new ReceiveBuffer(pool);
    this.#target = this.buffer.nextTarget(false);
  }

  /** The byte at `at` of this stream's message number `message`. */
  #byte(message: number, at: number): number {
    return (message * 31 + at * 7 + this.#key * 101) & 0xff;
  }

  #nextMessage(): void {
    const random = this.#random;
    const length = random.pick([
      0,
      random.below(100),
      random.below(100),
      random.below(5_000),
      random.below(100_000),
      random.below(400_000),
      random.below(2_500_000),
    ]);
    this.#message = Buffer.alloc(HEADER + length);
    this.#message.writeUInt32BE(length, 0);
    for (let at = 0; at < length; at++) this.#message[HEADER + at] = this.#byte(this.#expected, at);
    this.#expected++;
    this.#sent = 0;
  }

  /** A paused connection may go on. */
  resume(): void {
    if (this.#paused) this.parse(this.#random.chance(0.5) ? Infinity : this.#random.below(4));
  }

  /** What the event loop does: it reads into the target, calls back, and asks for the next target. */
  arrive(): void {
    if (this.#paused) return;
    let length = 0;
    const limit = this.#random.pick([1, 30, 3_000, 200_000, 1_000_000]);
    assert.ok(this.#target.length > 0);
    while (length < Math.min(limit, this.#target.length)) {
      if (this.#sent === this.#message.length) this.#nextMessage();
      const piece = this.#message.subarray(this.#sent, this.#sent + Math.min(limit, this.#target.length) - length);
      this.#target.set(piece, length);
      length += piece.length;
      this.#sent += piece.length;
    }
    this.buffer.filled(length);
    this.parse(this.#random.chance(0.2) ? this.#random.below(3) : Infinity);
    this.#target = this.buffer.nextTarget(this.#paused);
  }

  /** Takes at most `count` messages, and pauses when there may be more. */
  parse(count: number): void {
    const { buffer } = this;
    let need = 0;
    let blocked = false;
    while (need === 0) {
      const available = buffer.end - buffer.start;
      if (count-- <= 0) {
        blocked = true;
        need = available;
        break;
      }
      if (available < HEADER) {
        need = HEADER;
        break;
      }
      const length = buffer.chunk.view.getUint32(buffer.start);
      if (available < HEADER + length) {
        need = HEADER + length;
        break;
      }
      const at = buffer.start + HEADER;
      this.#check(buffer.chunk.bytes.subarray(at, at + length));
      buffer.start = at + length;
      if (length > 65_536 && buffer.chunk !== this.#pool.shared && this.#random.chance(0.3)) {
        const chunk = buffer.detach();
        this.held.push({ chunk, at, copy: Buffer.from(chunk.bytes.subarray(at, at + length)) });
      }
    }
    assert.equal(buffer.settle(need), true);
    this.#paused = blocked;
  }

  #check(payload: Buffer): void {
    for (let at = 0; at < payload.length; at++) {
      if (payload[at] !== this.#byte(this.messages, at)) {
        assert.fail(`stream ${this.#key}, message ${this.messages}: byte ${at} of ${payload.length} is wrong`);
      }
    }
    this.messages++;
  }

  /** The operation that took a payload along ends. */
  letGo(): void {
    const held = this.held.pop();
    if (held === undefined) return;
    assert.ok(
      held.copy.equals(held.chunk.bytes.subarray(held.at, held.at + held.copy.length)),
      "a held payload changed",
    );
    this.#pool.release(held.chunk);
  }
}

void test("streams that share a pool keep their bytes apart and in order, however they arrive and pause", () => {
  for (let seed = 1; seed <= 12; seed++) {
    const random = new Random(seed);
    const pool = new BufferPool();
    const streams = [1, 2, 3, 4].map((key) => new Stream(pool, random, key));
    try {
      for (let step = 0; step < 600; step++) {
        const stream = random.pick(streams);
        const action = random.below(10);
        if (action < 7) stream.arrive();
        else if (action < 9) stream.resume();
        else stream.letGo();
      }
      assert.ok(streams.some(({ messages }) => messages > 20));
      for (const stream of streams) {
        while (stream.held.length > 0) stream.letGo();
        stream.buffer.close();
      }
      assert.equal(pool.bytesInUse + pool.budgetInUse, 0);
    } catch (error) {
      throw new Error(`seed ${seed}`, { cause: error });
    }
  }
});

void test("an idle connection holds no memory", () => {
  const pool = new BufferPool();
  const buffer = new ReceiveBuffer(pool);
  const target = buffer.nextTarget(false);
  buffer.filled(28);
  buffer.start = 28;
  buffer.settle(28);
  assert.equal(pool.bytesInUse, 0);
  assert.equal(buffer.nextTarget(false).buffer, target.buffer);
  // A request in two pieces needs a buffer until it is complete.
  buffer.filled(10);
  buffer.settle(28);
  assert.ok(pool.bytesInUse > 0);
  buffer.nextTarget(false);
  buffer.filled(18);
  buffer.start = buffer.end;
  buffer.settle(28);
  assert.equal(pool.bytesInUse, 0);
});
