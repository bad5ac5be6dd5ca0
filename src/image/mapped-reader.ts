import { setImmediate as nextTurn } from "node:timers/promises";
import type { ReadOptions, Sink, ZeroTaker } from "../backend/backend.ts";
import { SharedWork } from "../base/shared-work.ts";
import type { BlockMap, Extent, Packed, Stored } from "./block-map.ts";
import { damagedImage, type ImageReader } from "./image-format.ts";
import { readBytes, readInto, sendZeros } from "./read-bytes.ts";
import { unpackThreads, type Slab } from "./unpack-threads.ts";
import { type Codec, unpack } from "./unpack.ts";
import { unpackXz } from "./xz-blocks.ts";

/*
 * A disk whose parts lie about in an object: zeros that lie nowhere, stored bytes, and clusters that are compressed. The
 * format's table says what lies where (`BlockMap`); how it is brought is the same for all formats:
 *
 *   - a long stored run goes to the sink as it comes;
 *   - of everything else a window of the disk is gathered at once: its ranges, sorted, those near each other with one
 *     request, all requests side by side; then its clusters are unpacked side by side, in threads when there are many, and
 *     sent in order;
 *   - while one window is sent, the next one is being gathered.
 */

/** A stored run of at least this much is not gathered. */
const STREAM_BYTES = 256 * 1024;

/** Of the disk; a window is at least one extent. */
const WINDOW_BYTES = 1024 * 1024;

/** What lies this near to each other in the object comes with one request. */
const MAX_GAP_BYTES = 64 * 1024;

/** One request brings at most this, or one cluster. */
const MAX_REQUEST_BYTES = 2 * 1024 * 1024;

/**
 * A question about zeros looks at so much of the disk in one step: more each time, while there are few extents in it. And how
 * long steps may go on without letting others in.
 */
const FIRST_TELL_BYTES = 1024 * 1024;
const MAX_TELL_BYTES = 16 * 1024 * 1024;
const MANY_EXTENTS = 1024;
const TELL_MS = 1;

/** So many clusters are unpacked by one of the threads that are there for it; fewer, in the thread pool. */
const BATCH_PIECES = 2;

/** Clusters that are only needed in part are kept, unpacked, up to so many bytes per image; but two, however large. */
const CLUSTER_BUDGET_BYTES = 8 * 1024 * 1024;
const CLUSTERS_AT_LEAST = 2;

export class MappedReader implements ImageReader {
  readonly size: number;
  readonly #source: ImageReader;
  readonly #map: BlockMap;
  /** Clusters that were needed in part, by where they lie; in the order of their last use. */
  readonly #clusters = new Map<number, Cluster>();
  #clusterBytes = 0;

  constructor(source: ImageReader, map: BlockMap) {
    this.size = map.size;
    this.#source = source;
    this.#map = map;
  }

  zeroRun(offset: number, length: number, options?: ReadOptions): Promise<number> {
    if (options?.background === true) this.#map.ahead?.(offset, options);
    return this.#map.zeroRun(offset, length, options);
  }

  async tellZeros(offset: number, length: number, take: ZeroTaker, options?: ReadOptions): Promise<void> {
    const end = offset + length;
    let step = FIRST_TELL_BYTES;
    let since = performance.now();
    for (let at = offset; at < end;) {
      if (performance.now() - since > TELL_MS) {
        await nextTurn();
        options?.signal?.throwIfAborted();
        since = performance.now();
      }
      this.#map.ahead?.(at, options);
      const zeros = await this.#map.zeroRun(at, end - at, options);
      if (zeros > 0) {
        take(zeros, true);
        at += zeros;
        continue;
      }
      const count = Math.min(step, end - at);
      const extents = await this.#map.extents(at, count, options);
      await tellExtents(extents, take, options);
      if (extents.length < MANY_EXTENTS) step = Math.min(2 * step, MAX_TELL_BYTES);
      at += count;
    }
  }

  async read(offset: number, length: number, sink: Sink, options: ReadOptions = {}): Promise<void> {
    const steps = stepsOf(await this.#map.extents(offset, length, options));
    const stopped = new AbortController();
    const stop = (): void => stopped.abort(options.signal?.reason);
    options.signal?.addEventListener("abort", stop, { once: true });
    const gather = (step: Step | undefined): Promise<Gathered> | undefined => {
      if (step?.kind !== "window") return undefined;
      const gathering = this.#gather(step.extents, { ...options, signal: stopped.signal });
      gathering.catch(() => undefined); // met when its turn comes
      return gathering;
    };
    let next: Promise<Gathered> | undefined;
    try {
      options.signal?.throwIfAborted();
      next = gather(steps[0]);
      for (const [index, step] of steps.entries()) {
        const gathered = await next;
        next = gather(steps[index + 1]);
        if (step.kind === "zero") await sendZeros(step.length, sink);
        else if (step.kind === "stored") {
          await (step.source ?? this.#source).read(step.at, step.length, sink, options);
        } else await sendWindow(step.extents, gathered!, sink);
      }
    } catch (error) {
      stop();
      await next?.then(
        (gathered) => gathered.release(),
        () => undefined,
      ); // nothing is under way any more when this has returned
      throw error;
    } finally {
      options.signal?.removeEventListener("abort", stop);
    }
  }

  async #gather(extents: readonly Extent[], options: ReadOptions): Promise<Gathered> {
    const partly = (extent: Extent): extent is Packed => extent.kind === "packed" && extent.length < extent.bytes;
    const whole = extents.filter((extent) => extent.kind !== "zero" && !partly(extent)) as (Stored | Packed)[];
    const gathered = new Gathered();
    const work = [
      ...requestsFor(whole).map((request) => this.#bringRequest(request, gathered, options)),
      ...extents.filter(partly).map(async (extent) => {
        const cluster = await this.#cluster(extent, options);
        gathered.bytes.set(extent, cluster.subarray(extent.skip, extent.skip + extent.length));
      }),
    ];
    for (const outcome of await Promise.allSettled(work)) {
      if (outcome.status !== "rejected") continue;
      gathered.release();
      throw outcome.reason;
    }
    return gathered;
  }

  async #bringRequest(request: Request, gathered: Gathered, options: ReadOptions): Promise<void> {
    const packed = request.extents.filter((extent) => extent.kind === "packed");
    const small = packed.every(({ codec }) => codec !== "xz");
    const source = request.source ?? this.#source;
    if (small && packed.length >= BATCH_PIECES && unpackThreads.ready()) {
      const slab = unpackThreads.take(
        request.length,
        packed.reduce((sum, { bytes }) => sum + bytes, 0),
      );
      gathered.slabs.push(slab);
      await readInto(source, request.at, slab.packed.subarray(0, request.length), options);
      takeStored(request, slab.packed, gathered);
      await this.#unpackBatch(request, packed, slab, gathered, options);
      return;
    }
    const bytes = await readBytes(source, request.at, request.length, options);
    takeStored(request, bytes, gathered);
    const unpacking = packed.map(async (extent) => {
      const from = extent.at - request.at;
      gathered.bytes.set(extent, await this.#unpack(extent, bytes.subarray(from, from + extent.packedBytes), options));
    });
    await Promise.all(unpacking);
  }

  async #unpackBatch(
    request: Request,
    packed: readonly Packed[],
    slab: Slab,
    gathered: Gathered,
    { background = false }: ReadOptions,
  ): Promise<void> {
    const pieces = packed.map((extent) => {
      const { at, packedBytes, codec, bytes, least } = extent;
      const piece = this.#trimmed(extent, slab.packed.subarray(at - request.at, at - request.at + packedBytes));
      return { from: piece.byteOffset, length: piece.length, codec: codec as Codec, bytes, least };
    });
    const { lengths, failure } = await unpackThreads.unpack(slab, pieces, background);
    if (failure !== undefined) throw this.#damaged(packed[lengths.length], new Error(failure));
    let at = slab.unpackedAt;
    for (const [index, length] of lengths.entries()) {
      gathered.bytes.set(packed[index], new Uint8Array(slab.memory, at, length));
      at += length;
    }
  }

  async #unpack(extent: Packed, packed: Buffer, { background = false }: ReadOptions): Promise<Buffer> {
    const trimmed = this.#trimmed(extent, packed);
    try {
      const { codec, bytes, least } = extent;
      if (codec === "xz") return await unpackXz(trimmed, bytes, background);
      return await unpack(trimmed, { codec, bytes, least });
    } catch (cause) {
      throw this.#damaged(extent, cause);
    }
  }

  #trimmed(extent: Packed, packed: Buffer): Buffer {
    try {
      return this.#map.trim?.(packed, extent) ?? packed;
    } catch (cause) {
      throw this.#damaged(extent, cause);
    }
  }

  #damaged({ packedBytes, at }: Packed, cause: unknown): Error {
    return damagedImage(
      this.#map.name,
      `the ${packedBytes} compressed bytes at ${at} are not what they should be`,
      cause,
    );
  }

  /** All of a cluster that is needed in part: the other parts will be, too. */
  async #cluster(extent: Packed, options: ReadOptions): Promise<Buffer> {
    const before = this.#clusters.get(extent.at);
    const known = before?.work.aborted === false ? before : undefined;
    const cluster = known ?? { work: this.#bring(extent, options), bytes: extent.bytes, settled: false };
    const { work } = cluster;
    this.#forget(extent.at);
    this.#clusters.set(extent.at, cluster);
    this.#clusterBytes += extent.bytes;
    this.#makeRoom();
    try {
      const bytes = await work.join(options.signal);
      if (!cluster.settled) {
        cluster.settled = true;
        this.#makeRoom();
      }
      return bytes;
    } catch (error) {
      if (this.#clusters.get(extent.at)?.work === work) this.#forget(extent.at);
      // What failed for somebody else, who may have been in the background, is tried again for us.
      if (known === undefined || options.signal?.aborted === true) throw error;
      return this.#cluster(extent, options);
    }
  }

  /** What is on its way stays, for others who will need it: it is bounded by those who wait. */
  #makeRoom(): void {
    for (const [at, { settled }] of this.#clusters) {
      if (this.#clusterBytes <= CLUSTER_BUDGET_BYTES || this.#clusters.size <= CLUSTERS_AT_LEAST) return;
      if (settled) this.#forget(at);
    }
  }

  #forget(at: number): void {
    this.#clusterBytes -= this.#clusters.get(at)?.bytes ?? 0;
    this.#clusters.delete(at);
  }

  #bring(extent: Packed, options: ReadOptions): SharedWork<Buffer> {
    return new SharedWork(async (signal) => {
      const packed = await readBytes(this.#source, extent.at, extent.packedBytes, { ...options, signal });
      return this.#unpack(extent, packed, options);
    });
  }
}

/** What the image that this one lies on has may be zeros there: it is asked, about what is in one piece at once. */
async function tellExtents(
  extents: readonly Extent[],
  take: ZeroTaker,
  options: ReadOptions | undefined,
): Promise<void> {
  for (const extent of joined(extents)) {
    const below = extent.kind === "stored" ? extent.source : undefined;
    if (extent.kind !== "stored" || below?.tellZeros === undefined) take(extent.length, extent.kind === "zero");
    else await below.tellZeros(extent.at, extent.length, take, options);
  }
}

interface Cluster {
  work: SharedWork<Buffer>;
  bytes: number;
  /** It is here. */
  settled: boolean;
}

/** What a window's extents hold. */
class Gathered {
  readonly bytes = new Map<Extent, Uint8Array>();
  /** Memory that some of the bytes lie in. */
  readonly slabs: Slab[] = [];

  /** The bytes are not looked at any more, and no thread works on them. */
  release(): void {
    for (const slab of this.slabs.splice(0)) unpackThreads.give(slab);
  }
}

async function sendWindow(extents: readonly Extent[], gathered: Gathered, sink: Sink): Promise<void> {
  try {
    for (const run of runsOf(extents, gathered)) {
      const drained = typeof run === "number" ? sendZeros(run, sink) : sink(run);
      if (drained !== undefined) await drained;
    }
  } finally {
    gathered.release();
  }
}

/** The bytes of the extents, or how many zeros; those that lie behind each other in memory are one run. */
function* runsOf(extents: readonly Extent[], gathered: Gathered): Generator<Uint8Array | number> {
  let run: Uint8Array | undefined;
  for (const extent of extents) {
    const bytes = extent.kind === "zero" ? undefined : gathered.bytes.get(extent)!;
    if (run !== undefined && bytes?.buffer === run.buffer && bytes.byteOffset === run.byteOffset + run.length) {
      run = new Uint8Array(run.buffer, run.byteOffset, run.length + bytes.length);
      continue;
    }
    if (run !== undefined) yield run;
    if (bytes === undefined) yield extent.length;
    run = bytes;
  }
  if (run !== undefined) yield run;
}

/** What is stored, of what a request has brought. */
function takeStored(request: Request, bytes: Buffer, gathered: Gathered): void {
  for (const extent of request.extents) {
    if (extent.kind !== "stored") continue;
    const from = extent.at - request.at;
    gathered.bytes.set(extent, bytes.subarray(from, from + extent.length));
  }
}

type Step = Extract<Extent, { kind: "zero" }> | Stored | { kind: "window"; extents: Extent[]; length: number };

/** What is done one after the other. Neighbouring stored runs become one. */
function stepsOf(extents: readonly Extent[]): Step[] {
  const steps: Step[] = [];
  for (const extent of joined(extents)) {
    if (extent.kind !== "packed" && extent.length >= STREAM_BYTES) {
      steps.push(extent);
      continue;
    }
    const last = steps.at(-1);
    if (last?.kind === "window" && last.length + extent.length <= WINDOW_BYTES) {
      last.extents.push(extent);
      last.length += extent.length;
    } else {
      steps.push({ kind: "window", extents: [extent], length: extent.length });
    }
  }
  return steps;
}

function joined(extents: readonly Extent[]): Extent[] {
  const result: Extent[] = [];
  for (const extent of extents) {
    const last = result.at(-1);
    if (extent.kind === "zero" && last?.kind === "zero") last.length += extent.length;
    else if (extent.kind === "stored" && last?.kind === "stored" && follows(last, extent)) last.length += extent.length;
    else result.push({ ...extent });
  }
  return result;
}

const follows = (last: Stored, next: Stored): boolean =>
  last.source === next.source && last.at + last.length === next.at;

interface Request {
  source: ImageReader | undefined;
  at: number;
  length: number;
  extents: (Stored | Packed)[];
}

/** Few requests for many extents. */
function requestsFor(extents: readonly (Stored | Packed)[]): Request[] {
  const requests: Request[] = [];
  const sourceOf = (extent: Stored | Packed): ImageReader | undefined =>
    extent.kind === "stored" ? extent.source : undefined;
  for (const extent of extents.toSorted((a, b) => a.at - b.at)) {
    const end = extent.at + (extent.kind === "stored" ? extent.length : extent.packedBytes);
    const source = sourceOf(extent);
    const near = requests.findLast((request) => request.source === source);
    const gap = near === undefined ? Infinity : extent.at - (near.at + near.length);
    if (near !== undefined && gap <= MAX_GAP_BYTES && end - near.at <= MAX_REQUEST_BYTES) {
      near.length = Math.max(near.length, end - near.at);
      near.extents.push(extent);
    } else {
      requests.push({ source, at: extent.at, length: end - extent.at, extents: [extent] });
    }
  }
  return requests;
}
