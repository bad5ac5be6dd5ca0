import { constants } from "node:os";
import { CorruptionError, describeError, IoError, SourceError, UllageError } from "../../base/errors.ts";
import type { Clock } from "../../base/clock.ts";
import { closeDescriptor } from "../../base/posix.ts";
import { fileOfDescriptor } from "../../base/real-file-system.ts";
import type { Blob, BlobStats, BlobZeros, FetchOptions } from "../blob.ts";
import { type SourceTrouble, SourceTroubles } from "../source-trouble.ts";
import type { ContentCheck } from "../content-check.ts";
import { MISS_BYTES } from "../neighbours.ts";
import { RangeMap } from "../range-map.ts";
import { ReadaheadFetcher } from "../readahead-fetcher.ts";
import { SharedReadiness } from "../shared-readiness.ts";
import type { ManagerClient, Reply } from "./manager-client.ts";
import { PassedFile } from "./passed-file.ts";
import { RemoteZeros } from "./remote-zeros.ts";
import { decodeProblem } from "./problem.ts";
import { blobIdBytes, Body, Lane, readLength, Request, type RequestCode, Result } from "./wire.ts";

/** A token that the manager does not know is got anew and used again, so often at most. */
const MAX_REOPENINGS = 4;
const REOPEN_PAUSE_MS = 50;
/** Of a range, in one request. */
const MAX_FETCH_BYTES = 32 * 1024 * 1024;
const PIN_BYTES = 16;

/** What one GetBlob brought. */
interface Opened {
  generation: number;
  token: bigint;
  size: number;
  unitBytes: number;
  base: number;
  data: number;
  readiness: SharedReadiness;
}

export interface RemoteBlobOptions {
  client: ManagerClient;
  clock: Clock;
  id: string;
  /** See `BlobCacheOptions.missBytes`. */
  missBytes?: number;
  log(this: void, level: "info" | "warn", message: string): void;
}

/**
 * A blob that another process caches: its bytes are read from the descriptor that the blob manager passed, readiness from
 * memory that it shares, and what is missing is asked for. After the manager was restarted both are the new one's.
 *
 * What is ready stays readable while the manager is away: the descriptor that was passed keeps the file.
 */
export class RemoteBlob implements Blob {
  readonly id: string;
  readonly size: number;
  readonly unitBytes: number;
  readonly file: PassedFile;
  readonly stats: BlobStats = {
    foregroundBytes: 0,
    readaheadBytes: 0,
    backgroundBytes: 0,
    requests: 0,
    errors: 0,
  };
  readonly #options: RemoteBlobOptions;
  readonly #pins: Set<string>;
  readonly #listeners = new Set<(start: number, length: number) => void>();
  readonly #forget: () => void;
  readonly #readahead: ReadaheadFetcher;
  #readiness!: SharedReadiness;
  #zeros: RemoteZeros | undefined;
  /** Over the shared bits; counts for as long as `#sequence` is the readiness's. */
  #map!: RangeMap;
  #durable!: RangeMap;
  #sequence = -1;
  /** Undefined while there is none of this connection. */
  #token: bigint | undefined;
  #reopening: Promise<void> | undefined;
  readonly #troubles = new SourceTroubles();
  /** What the last check came to. */
  #wrong: ContentCheck["trouble"];
  /** Why the last attempt to open it again failed. */
  #failure: Error | undefined;
  #closed = false;

  private constructor(options: RemoteBlobOptions, opened: Opened, pins: Set<string>) {
    this.#options = options;
    this.id = options.id;
    this.size = opened.size;
    this.unitBytes = opened.unitBytes;
    this.#pins = pins;
    this.#readahead = new ReadaheadFetcher(
      opened,
      options.missBytes ?? MISS_BYTES,
      (offset, length) => this.isReady(offset, length),
      (offset, length) => this.#fetch(offset, length, Lane.readahead),
    );
    this.file = new PassedFile(`blob ${options.id}`, fileOfDescriptor(`blob ${options.id}`, opened.data), opened.base);
    this.#use(opened.readiness);
    this.#token = opened.generation === options.client.generation ? opened.token : undefined;
    this.#forget = options.client.register({
      reopen: () => void this.#reopen(),
      notified: (body) => this.#notified(body),
    });
    this.#look();
    if (this.#token === undefined) void this.#reopen();
  }

  /** @throws UllageError `not-found`, IoError */
  static async open(options: RemoteBlobOptions): Promise<RemoteBlob> {
    const opened = await getBlob(options);
    return new RemoteBlob(options, opened, await readPins(options, opened));
  }

  // ---- readiness ---------------------------------------------------------------------------------------------------

  /** From now on the memory of another manager counts. */
  #use(readiness: SharedReadiness): void {
    const { size, unitBytes } = this;
    const { zeros: shared } = readiness;
    this.#readiness = readiness;
    this.#sequence = -1;
    this.#zeros =
      shared &&
      new RemoteZeros({
        size,
        unitBytes,
        clock: this.#options.clock,
        shared,
        ask: (offset, length) => this.#learn(offset, length),
      });
  }

  /** Takes the bits as they are counted from, when they were taken back since. */
  #look(): boolean {
    const { sequence } = this.#readiness;
    if (sequence === this.#sequence) return true;
    if ((sequence & 1) !== 0) return false;
    this.#map = new RangeMap(this.size, this.unitBytes, this.#readiness.ready);
    this.#durable = new RangeMap(this.size, this.unitBytes, this.#readiness.durable);
    this.#sequence = sequence;
    return true;
  }

  get readyBytes(): number {
    return this.#readiness.readyBytes;
  }

  get losses(): number {
    return this.#readiness.sequence;
  }

  isReady(offset: number, length: number): boolean {
    return this.#look() && this.#map.isReady(offset, length);
  }

  readyRun(offset: number, length: number): number {
    return this.#look() ? this.#map.readyRun(offset, length) : length;
  }

  isDurable(offset: number, length: number): boolean {
    return this.#look() && this.#durable.isReady(offset, length);
  }

  get check(): ContentCheck | undefined {
    const { check: state } = this.#readiness;
    if (state === undefined) return undefined;
    if (state === "verified") this.#wrong = undefined;
    return { state, trouble: this.#wrong, run: (signal) => this.#runCheck(signal), forgive: () => this.#forgive() };
  }

  async #runCheck(signal?: AbortSignal): Promise<boolean> {
    const { client, clock } = this.#options;
    try {
      return (await client.ask("check", { blob: this.id }, signal)).complete;
    } catch (error) {
      if (error instanceof SourceError) this.#wrong = { error, at: clock.wallTime() };
      throw error;
    }
  }

  #forgive(): void {
    if (this.#readiness.check !== "givenUp") return;
    const { client, log } = this.#options;
    client.ask("forgive", { blob: this.id }).catch((error: unknown) => {
      log("warn", `blob ${this.id} stays given up: ${describeError(error)}`);
    });
  }

  /** Undefined with a manager that tells nothing of them, perhaps because it is an older one. */
  get zeros(): BlobZeros | undefined {
    return this.#zeros;
  }

  async #learn(offset: number, length: number): Promise<void> {
    await this.#ask(Request.learn, (token) => {
      // The manager that was to be asked is gone, and the one that is there now may not know the request.
      if (this.#zeros === undefined) throw new UllageError("not-supported", "the blob manager tells of no zeros");
      return new Body().u64(token).u64(offset).u64(length).done();
    });
  }

  noteRead(offset: number, length: number): void {
    this.#readahead.note(offset, length);
  }

  /**
   * Hears which ranges become ready, by whoever's fetch; with a length of 0: look at all of it.
   * @returns what ends it
   */
  async watch(listener: (start: number, length: number) => void): Promise<() => void> {
    this.#listeners.add(listener);
    await this.#ask(Request.watch, (token) => new Body().u64(token).done());
    return () => this.#listeners.delete(listener);
  }

  #notified(body: Buffer): void {
    if (body.readBigUInt64LE(0) !== this.#token) return;
    for (const listener of this.#listeners) listener(readLength(body, 8), readLength(body, 16));
  }

  // ---- asking ------------------------------------------------------------------------------------------------------

  async fetch(offset: number, length: number, options: FetchOptions = {}): Promise<void> {
    const end = Math.min(offset + length, this.size);
    for (let at = offset; at < end; at += MAX_FETCH_BYTES) {
      const count = Math.min(MAX_FETCH_BYTES, end - at);
      if (this.isReady(at, count)) continue;
      const { background = false, soon = false, signal } = options;
      await this.#fetch(at, count, background ? Lane.background : soon ? Lane.readahead : undefined, signal);
    }
  }

  async #fetch(offset: number, length: number, lane?: number, signal?: AbortSignal): Promise<void> {
    this.stats.requests++;
    const before = this.readyBytes;
    try {
      const request = lane === undefined ? Request.fetchRange : Request.prefetch;
      await this.#ask(
        request,
        (token) => {
          const body = new Body().u64(token).u64(offset).u64(length);
          return (lane === undefined ? body : body.u32(lane)).done();
        },
        signal,
      );
    } catch (error) {
      if (signal?.aborted !== true) {
        this.stats.errors++;
        if (error instanceof SourceError)
          this.#troubles.note({ error, final: true, at: this.#options.clock.wallTime() });
      }
      throw error;
    }
    this.#troubles.note(undefined);
    this.stats[laneBytes(lane)] += Math.max(0, this.readyBytes - before);
  }

  /** See `CachedBlob`: of what this process asked for. */
  get sourceTrouble(): SourceTrouble | undefined {
    return this.#troubles.last;
  }

  /** See `SourceTroubles.listen`. */
  onTrouble(listener: () => void): () => void {
    return this.#troubles.listen(listener);
  }

  async sync(): Promise<void> {
    await this.#ask(Request.sync, (token) => new Body().u64(token).done());
  }

  async pin(volumeId: string): Promise<void> {
    await this.#ask(Request.pin, (token) => new Body().u64(token).bytes(Buffer.from(volumeId, "hex")).done());
    this.#pins.add(volumeId);
  }

  async unpin(volumeId: string): Promise<void> {
    await this.#ask(Request.unpin, (token) => new Body().u64(token).bytes(Buffer.from(volumeId, "hex")).done());
    this.#pins.delete(volumeId);
  }

  isPinnedBy(volumeId: string): boolean {
    return this.#pins.has(volumeId);
  }

  /** One request about this blob, sent again with another token when the manager does not know this one any more. */
  async #ask(request: RequestCode, body: (token: bigint) => Buffer, signal?: AbortSignal): Promise<void> {
    const ranged = request === Request.fetchRange || request === Request.prefetch;
    const resultAt = ranged ? 16 : 8;
    for (let attempt = 1; ; attempt++) {
      if (this.#closed) throw new UllageError("closed", `blob ${this.id} is closed`);
      if (this.#failure !== undefined) await this.#reopen();
      const reply = await this.#options.client.request(
        request,
        () => {
          if (this.#token !== undefined) return body(this.#token);
          if (this.#failure === undefined) return undefined;
          throw this.#failure;
        },
        signal,
      );
      reply.descriptors.forEach(closeDescriptor);
      const result = reply.body.length >= resultAt + 4 ? reply.body.readUInt32LE(resultAt) : Result.failure;
      if (result === Result.success) return;
      if (result !== Result.generationMismatch) {
        throw decodeProblem(reply.body.subarray(resultAt + 4), `the blob manager could not do it (result ${result})`);
      }
      if (attempt === MAX_REOPENINGS) {
        throw new IoError("EIO", `the blob manager forgets blob ${this.id} again and again`);
      }
      await this.#options.clock.sleep(REOPEN_PAUSE_MS * attempt, signal);
      await this.#reopen();
    }
  }

  /** Asks for the blob again, over the connection that there is now. @throws what opening throws */
  #reopen(): Promise<void> {
    this.#token = undefined;
    this.#reopening ??= this.#adopt().finally(() => (this.#reopening = undefined));
    // Whoever waits for it hears of a failure; between requests it is only remembered.
    this.#reopening.catch(() => undefined);
    return this.#reopening;
  }

  async #adopt(): Promise<void> {
    const { client } = this.#options;
    try {
      for (;;) {
        const opened = await getBlob(this.#options);
        if (this.#closed || opened.size !== this.size || opened.unitBytes !== this.unitBytes) {
          discard(opened);
          if (this.#closed) return;
          throw new CorruptionError(`the blob manager has another blob ${this.id} now`);
        }
        this.#use(opened.readiness);
        await this.file.replace(fileOfDescriptor(this.file.path, opened.data), opened.base);
        if (opened.generation !== client.generation) continue; // lost again meanwhile
        this.#token = opened.token;
        break;
      }
      this.#failure = undefined;
      if (this.#listeners.size > 0) {
        for (const listener of this.#listeners) listener(0, 0);
        void this.#ask(Request.watch, (token) => new Body().u64(token).done()).catch((error: unknown) =>
          this.#options.log("warn", `blob ${this.id}: readiness is not told: ${describeError(error)}`),
        );
      }
      client.resend();
    } catch (error) {
      this.#failure = error as Error;
      if (!this.#closed) this.#options.log("warn", `blob ${this.id} can't be opened again: ${describeError(error)}`);
      client.resend(); // what waits for it hears of it
      throw error;
    }
  }

  /** Gives it back. What is under way is not waited for, but for reads. */
  async close(): Promise<void> {
    if (this.#closed) return;
    const token = this.#token;
    this.#closed = true;
    this.#forget();
    await this.file.close();
    if (token === undefined) return;
    // Nobody waits for the answer: a manager that is gone has released it, too.
    void this.#options.client.request(Request.release, () => new Body().u64(token).done()).catch(() => undefined);
  }
}

async function getBlob({ client, id }: RemoteBlobOptions): Promise<Opened> {
  let generation = client.generation;
  const { body, descriptors }: Reply = await client.request(Request.getBlob, () => {
    ({ generation } = client);
    return new Body().u32(generation).text(id, blobIdBytes).done();
  });
  try {
    const code = body.length >= 20 ? body.readUInt32LE(16) : constants.errno.EIO;
    if (code === constants.errno.ENOENT) {
      throw new UllageError("not-found", `the blob manager has no blob ${id}`, {
        hint: "`ullage cache ls` lists them",
      });
    }
    if (code !== 0) throw decodeProblem(body.subarray(20), `the blob manager can't open blob ${id} (errno ${code})`);
    const [data, readiness] = descriptors;
    if (body.length !== 32 || data === undefined || readiness === undefined || descriptors.length !== 2) {
      throw new SourceError("blob-manager", "the blob manager's answer is malformed", { transient: false });
    }
    const [base, size] = [readLength(body, 8), readLength(body, 20)];
    const unitBytes = body.readUInt32LE(28);
    const shared = SharedReadiness.adopt(readiness, Math.ceil(size / unitBytes));
    shared.close();
    return { generation, token: body.readBigUInt64LE(0), base, size, unitBytes, data, readiness: shared };
  } catch (error) {
    descriptors.forEach(closeDescriptor);
    throw error;
  }
}

function laneBytes(lane: number | undefined): "foregroundBytes" | "readaheadBytes" | "backgroundBytes" {
  if (lane === undefined) return "foregroundBytes";
  return lane === Lane.readahead ? "readaheadBytes" : "backgroundBytes";
}

function discard(opened: Opened): void {
  closeDescriptor(opened.data);
}

async function readPins({ client }: RemoteBlobOptions, { token }: Opened): Promise<Set<string>> {
  const pins = new Set<string>();
  for (;;) {
    const { body } = await client.request(Request.pins, () => new Body().u64(token).u32(pins.size).done());
    if (body.length < 16 || body.readUInt32LE(8) !== Result.success) return pins; // the connection was lost: see `open`
    const total = body.readUInt32LE(12);
    for (let at = 16; at + PIN_BYTES <= body.length; at += PIN_BYTES)
      pins.add(body.toString("hex", at, at + PIN_BYTES));
    if (pins.size >= total || body.length === 16) return pins;
  }
}
