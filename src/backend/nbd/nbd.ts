import type { Clock } from "../../base/clock.ts";
import { SourceError } from "../../base/errors.ts";
import { orAborted } from "../../base/or-aborted.ts";
import type { BlockSizes } from "../../nbd/export-info.ts";
import { AllocationFlag } from "../../nbd/protocol.ts";
import { Admission } from "../admission.ts";
import type { Backend, Identity, Probe, ReadOptions, Sink, ZeroTaker } from "../backend.ts";
import type { NbdAddress } from "./nbd-address.ts";
import { NbdLines, type Reached } from "./nbd-lines.ts";
import { demandInside, readHead } from "../object-range.ts";
import { backendClosed, badAnswer, sourceChanged } from "../source-errors.ts";
import type { SourcePolicy } from "../source-guard.ts";
import { type ExtentQuestion, PinnedZeros } from "../source-zeros.ts";

export interface NbdOptions {
  /** Connections at once, if the server allows several. */
  connections?: number;
  /** Requests at once over all connections, of which those of the background are at most `backgroundRequests`. */
  requests?: number;
  backgroundRequests?: number;
  /** TCP, TLS and NBD handshake together. */
  connectTimeoutMs?: number;
  /** Longest wait for any bytes while requests are under way. */
  idleTimeoutMs?: number;
  /** A request may take the idle timeout plus what is under way before it at this rate, however steadily it trickles. */
  minBytesPerSecond?: number;
  /** A connection over which nothing is asked for so long is closed; the next read makes a new one. */
  keepMs?: number;
  /** Which servers may be connected to; absent: any. */
  policy?: SourcePolicy;
  /** Uniform in [0, 1): spreads attempts to connect. */
  random?: () => number;
}

const defaults: Required<Omit<NbdOptions, "policy" | "random">> = {
  connections: 4,
  requests: 32,
  backgroundRequests: 24,
  connectTimeoutMs: 10_000,
  idleTimeoutMs: 15_000,
  minBytesPerSecond: 16 * 1024,
  keepMs: 30_000,
};

/** A request brings so much, unless the server prefers or demands something else. */
const PIECE_BYTES = 256 * 1024;
const MAX_PIECE_BYTES = 1024 * 1024;
/** One read has so many requests under way. */
const READ_PIECES = 12;
/** Buffers kept for the next requests. */
const SPARE_BUFFERS = 8;

/** Handed on for zeros that did not come over the network. */
const zeros = Buffer.alloc(256 * 1024);

/**
 * An export of another NBD server. A read is cut into pieces, several of which are under way, over several connections if
 * the server allows that; each lands in a buffer of its own, from where it goes to the sink in order, so that what the sink
 * has seen is always the beginning of what was asked for, and good. What the server has said to be zeros is not asked for.
 *
 * The identity is the size and a sample of the content (nbd-lines.ts), never a strong one. It is compared for every piece
 * with that of the connection which it came over.
 */
export class NbdBackend implements Backend {
  readonly url: string;
  readonly #address: NbdAddress;
  readonly #lines: NbdLines;
  readonly #admission: Admission;
  readonly #closing = new AbortController();
  readonly #spare: Buffer[] = [];
  readonly #zeros = new PinnedZeros((identity) => this.#question(identity), this.#closing.signal);
  /** Bytes that READs brought; for tests and statistics. */
  bytesRead = 0;

  constructor(address: NbdAddress, clock: Clock, options: NbdOptions = {}) {
    const all = { policy: undefined, random: Math.random, ...defaults, ...options };
    this.url = address.url;
    this.#address = address;
    this.#admission = new Admission(all.requests, all.backgroundRequests);
    this.#lines = new NbdLines(address, clock, all);
  }

  /** Connections that there are; for tests and statistics. */
  get connections(): number {
    return this.#lines.count;
  }

  async probe(headBytes: number, signal?: AbortSignal): Promise<Probe> {
    const { identity } = await orAborted(this.#lines.reach(false), signal);
    return { identity, head: await readHead(this, identity, headBytes, signal), ranges: true };
  }

  async read(identity: Identity, offset: number, length: number, sink: Sink, options: ReadOptions = {}): Promise<void> {
    demandInside(identity, offset, length);
    if (length === 0) return;
    const background = options.background === true;
    const stopped = new AbortController();
    const signals = [stopped.signal, this.#closing.signal, ...(options.signal ? [options.signal] : [])];
    const signal = AbortSignal.any(signals);
    const { line } = await orAborted(this.#lines.reach(background), signal);
    const parts = this.#parts(identity, offset, offset + length, pieceBytes(line.info.blocks));
    const underWay: Promise<Piece>[] = [];
    const start = (): void => {
      const { value: part } = parts.next();
      if (part === undefined) return;
      const piece = part.zero ? Promise.resolve(zeroPiece(part)) : this.#fetch(identity, part, background, signal);
      piece.catch(() => undefined); // met when its turn comes
      underWay.push(piece);
    };
    try {
      for (let count = 0; count < READ_PIECES; count++) start();
      for (let next = underWay[0]; next !== undefined; next = underWay[0]) {
        const piece = await orAborted(next, signal);
        void underWay.shift();
        try {
          await send(piece, sink);
        } finally {
          piece.release();
        }
        signal.throwIfAborted();
        start();
      }
    } finally {
      stopped.abort();
      for (const piece of underWay) piece.then((unwanted) => unwanted.release()).catch(() => undefined); // not wanted any more
    }
  }

  stream(identity: Identity, sink: Sink, options?: ReadOptions): Promise<void> {
    return this.read(identity, 0, identity.size, sink, { ...options, background: true });
  }

  zeroRun(identity: Identity, offset: number, length: number, options?: ReadOptions): Promise<number> {
    return this.#zeros.zeroRun(identity, offset, length, options);
  }

  tellZeros(identity: Identity, offset: number, length: number, take: ZeroTaker, options?: ReadOptions): Promise<void> {
    return this.#zeros.tell(identity, offset, length, take, options);
  }

  close(): Promise<void> {
    this.#closing.abort(backendClosed());
    this.#lines.close();
    return Promise.resolve();
  }

  /** Pieces of a range, cut where multiples of their size are, and where known zeros begin and end. */
  *#parts(identity: Identity, offset: number, end: number, size: number): Generator<Part> {
    const known = this.#zeros.of(identity);
    for (let at = offset; at < end;) {
      const { zero, end: until } = known.known(at);
      const boundary = (Math.floor(at / size) + 1) * size;
      const to = Math.min(end, until, zero ? Infinity : boundary);
      yield { zero, offset: at, length: to - at };
      at = to;
    }
  }

  /** The place in the admission, and the buffer, are the request's until it has settled, whoever still waits for it. */
  #fetch(identity: Identity, part: Part, background: boolean, signal: AbortSignal): Promise<Piece> {
    return this.#admission.run(background, signal, async () => {
      const { line, identity: now } = await this.#reach(identity, background);
      signal.throwIfAborted();
      const { min, max } = line.info.blocks;
      const from = part.offset - (part.offset % min);
      const to = Math.min(identity.size, Math.ceil((part.offset + part.length) / min) * min);
      if (to - from > max)
        throw badAnswer(`${this.#address.shown} lets a request have ${max} bytes at once, it was more`);
      const buffer = this.#takeBuffer(to - from);
      try {
        await line.read(from, to - from, buffer);
      } catch (error) {
        this.#giveBack(buffer);
        throw error;
      }
      this.bytesRead += to - from;
      demandSame(this.#address.shown, identity, now);
      const bytes = buffer.subarray(part.offset - from, part.offset - from + part.length);
      return { bytes, length: part.length, release: () => this.#giveBack(buffer) };
    });
  }

  async #reach(identity: Identity, background: boolean): Promise<Reached> {
    const reached = await this.#lines.reach(background);
    demandSame(this.#address.shown, identity, reached.identity);
    return reached;
  }

  #takeBuffer(length: number): Buffer {
    const buffer = this.#spare.pop();
    if (buffer !== undefined && buffer.length >= length) return buffer;
    return Buffer.allocUnsafeSlow(Math.max(length, PIECE_BYTES));
  }

  #giveBack(buffer: Buffer): void {
    if (this.#spare.length < SPARE_BUFFERS) this.#spare.push(buffer);
  }

  #question(identity: Identity): ExtentQuestion {
    return (offset, length, take, signal) => {
      const stop = AbortSignal.any([signal, this.#closing.signal]);
      return this.#admission.run(true, stop, async () => {
        const { line } = await this.#reach(identity, true);
        if (!line.tellsZeros || offset % line.info.blocks.min !== 0) return false;
        const wanted = length - (length % line.info.blocks.min);
        if (wanted === 0) return false;
        try {
          await line.blockStatus(offset, wanted, (bytes, flags) => take(bytes, (flags & AllocationFlag.zero) !== 0));
          return true;
        } catch (error) {
          // It answered, and will answer the same again: what it does not tell is read.
          if (line.open && error instanceof SourceError) return false;
          throw error;
        }
      });
    };
  }
}

interface Part {
  zero: boolean;
  offset: number;
  length: number;
}

interface Piece {
  /** Absent: zeros. */
  bytes: Buffer | undefined;
  length: number;
  release(): void;
}

function zeroPiece({ length }: Part): Piece {
  return { bytes: undefined, length, release: () => undefined };
}

async function send({ bytes, length }: Piece, sink: Sink): Promise<void> {
  if (bytes !== undefined) return sink(bytes);
  for (let left = length; left > 0; left -= Math.min(left, zeros.length)) {
    const drained = sink(zeros.subarray(0, Math.min(left, zeros.length)));
    if (drained !== undefined) await drained;
  }
}

/** A power of two times the smallest block, which is one itself. */
function pieceBytes({ preferred, max }: BlockSizes): number {
  const wanted = Math.min(max, Math.max(PIECE_BYTES, Math.min(preferred, MAX_PIECE_BYTES)));
  return 2 ** Math.floor(Math.log2(wanted));
}

function demandSame(where: string, pinned: Identity, now: Identity): void {
  if (pinned.size === now.size && pinned.version === now.version) return;
  if (pinned.size !== now.size) {
    throw sourceChanged(`${where} has changed: it had ${pinned.size} bytes and now has ${now.size}`);
  }
  throw sourceChanged(`${where} has changed: a sample of its content is another one than when it was pinned`);
}
