import { createHash } from "node:crypto";
import { allOf } from "../../base/all-of.ts";
import type { Clock } from "../../base/clock.ts";
import { Info } from "../../nbd/protocol.ts";
import type { Identity } from "../backend.ts";
import type { NbdAddress } from "./nbd-address.ts";
import { connectError } from "./nbd-errors.ts";
import { type LineLimits, NbdLine } from "./nbd-line.ts";
import { tlsOptions } from "./nbd-tls.ts";
import { backendClosed } from "../source-errors.ts";
import type { SourcePolicy } from "../source-guard.ts";

export interface LinesOptions extends LineLimits {
  /** Connections at once, if the server says that they all see the same. */
  connections: number;
  /** TCP, TLS and NBD handshake together. */
  connectTimeoutMs: number;
  policy: SourcePolicy | undefined;
  random: () => number;
}

/** A connection, and what the export was when it was made. */
export interface Reached {
  line: NbdLine;
  identity: Identity;
}

/** Between two attempts to connect: uniform in [0, min(longest, first x 2^n)). */
const FIRST_DELAY_MS = 50;
const LONGEST_DELAY_MS = 2_000;

/** What a sample takes of the export, each time. */
const SAMPLE_BYTES = 4096;
const SAMPLES = 32;
/** As large as the largest smallest block. */
const SAMPLE_ALIGNMENT = 65536;

/**
 * The connections to one export. There is none until somebody needs one, and one more when all are busy, up to the limit.
 * When there are several, one of them is the foreground's: no bytes of the background lie before its own.
 *
 * Only one attempt to connect is made at a time, and after a failed one a pause, which grows. Whoever needs a connection
 * meanwhile shares the attempt and its failure; trying again is RetryBackend's.
 *
 * NBD has no validators. So each new connection takes a sample: a hash of some blocks, which with the size is the identity
 * of what is behind this connection. What was exchanged while nobody was connected is most often noticed.
 */
export class NbdLines {
  readonly #address: NbdAddress;
  readonly #clock: Clock;
  readonly #options: LinesOptions;
  readonly #closing = new AbortController();
  #lines: Reached[] = [];
  #connecting: Promise<Reached> | undefined;
  #failures = 0;

  constructor(address: NbdAddress, clock: Clock, options: LinesOptions) {
    this.#address = address;
    this.#clock = clock;
    this.#options = options;
  }

  get count(): number {
    return this.#lines.length;
  }

  /** The connection to use for the next request. @throws SourceError */
  async reach(background: boolean): Promise<Reached> {
    this.#closing.signal.throwIfAborted();
    if (this.#lines.length === 0) return this.#connect();
    const [first, ...others] = this.#lines;
    const { multiConn } = first.line.info;
    const busy = this.#lines.every(({ line }) => line.load > 0);
    if (busy && multiConn && this.#lines.length < this.#options.connections) {
      this.#connect().catch(() => undefined); // there are others; when there is none, whoever needs one meets the failure
    }
    const eligible = background && others.length > 0 ? others : this.#lines;
    return eligible.reduce((best, each) => (each.line.load < best.line.load ? each : best));
  }

  close(): void {
    const error = backendClosed();
    this.#closing.abort(error);
    for (const { line } of this.#lines) line.close(error);
  }

  #connect(): Promise<Reached> {
    this.#connecting ??= this.#attempt().finally(() => (this.#connecting = undefined));
    return this.#connecting;
  }

  async #attempt(): Promise<Reached> {
    const { signal } = this.#closing;
    if (this.#failures > 0) {
      const longest = Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** this.#failures);
      await this.#clock.sleep(this.#options.random() * longest, signal);
    }
    let line: NbdLine | undefined;
    try {
      line = await this.#open(signal);
      const reached = { line, identity: await identify(line) };
      signal.throwIfAborted();
      this.#lines.push(reached);
      line.onEnd = () => void (this.#lines = this.#lines.filter((each) => each !== reached));
      this.#failures = 0;
      return reached;
    } catch (error) {
      this.#failures++;
      line?.close(backendClosed());
      if (signal.aborted) throw signal.reason;
      throw connectError(this.#address.shown, error);
    }
  }

  async #open(signal: AbortSignal): Promise<NbdLine> {
    const { place, exportName, tls, shown, url } = this.#address;
    const { policy, connectTimeoutMs } = this.#options;
    if (place.kind === "unix") policy?.checkSocket();
    else policy?.check(new URL(url));
    const lookup = policy === undefined ? {} : { lookup: policy.lookup };
    const options = {
      target: place.kind === "unix" ? { path: place.path } : { host: place.host, port: place.port, ...lookup },
      wish: { exportName, infos: [Info.blockSize], context: "base:allocation" },
      ...(tls === undefined ? {} : { tls: await tlsOptions(tls, place, policy) }),
      timeoutMs: connectTimeoutMs,
      signal,
    };
    return NbdLine.connect(options, shown, this.#options);
  }
}

/** The size, and a hash of the beginning, the end, where partitions begin, and blocks spread evenly. */
async function identify(line: NbdLine): Promise<Identity> {
  const { size, blocks } = line.info;
  const last = Math.max(0, Math.floor((size - 1) / SAMPLE_ALIGNMENT) * SAMPLE_ALIGNMENT);
  const spread = Array.from({ length: SAMPLES }, (_, index) => (index * size) / SAMPLES);
  const aligned = [...spread, 1024 * 1024, last].map((at) => Math.floor(at / SAMPLE_ALIGNMENT) * SAMPLE_ALIGNMENT);
  const offsets = [...new Set(aligned)].filter((at) => at < size).toSorted((a, b) => a - b);
  const hash = createHash("sha256");
  // Also when one fails, the others are awaited: servers have been seen to abort when a client leaves in the middle.
  const samples = await allOf(
    offsets.map(async (at) => {
      const length = Math.min(Math.max(SAMPLE_BYTES, blocks.min), size - at);
      const bytes = Buffer.allocUnsafe(length);
      const step = Math.max(blocks.min, Math.min(length, blocks.max));
      for (let done = 0; done < length; done += step) {
        const part = bytes.subarray(done, Math.min(done + step, length));
        await line.read(at + done, part.length, part);
      }
      return bytes.subarray(0, SAMPLE_BYTES);
    }),
  );
  for (const sample of samples) hash.update(sample);
  return { size, version: `sample:sha256:${hash.digest("hex")}`, strong: false };
}
