import type { ReadOptions, Sink } from "../backend/backend.ts";
import { SharedWork } from "../base/shared-work.ts";
import { damagedImage, type ImageReader } from "./image-format.ts";
import { readBytes, sendZeros } from "./read-bytes.ts";
import { unpack, type Codec } from "./unpack.ts";

/*
 * A disk whose parts lie about in an object: zeros that lie nowhere, stored bytes, and clusters that are compressed. The
 * format's table says what lies where (`BlockMap`); how it is brought is the same for all formats:
 *
 *   - a long stored run goes to the sink as it comes;
 *   - of everything else a window of the disk is gathered at once: its ranges, sorted, those near each other with one
 *     request, all requests side by side; then its clusters are unpacked side by side, and sent in order;
 *   - while one window is sent, the next one is being gathered.
 */

/** A run of the disk. */
export type Extent =
  | { kind: "zero"; length: number }
  /** the object's bytes from `at` on */
  | { kind: "stored"; length: number; at: number; source?: ImageReader }
  | {
      /** [skip, skip + length) of the `bytes` bytes, or, if it is given, `least` at least, that [at, at + packedBytes) hold */
      kind: "packed";
      length: number;
      at: number;
      packedBytes: number;
      codec: Codec;
      bytes: number;
      skip: number;
      least?: number;
    };

type Packed = Extract<Extent, { kind: "packed" }>;
type Stored = Extract<Extent, { kind: "stored" }>;

/** Where the parts of a disk are, as its format's tables say. */
export interface BlockMap {
  /** of the format, for messages */
  readonly name: string;
  /** bytes of the disk */
  readonly size: number;
  /** The extents of a range that lies within the disk, in order; their lengths add up to `length`. */
  extents(offset: number, length: number, options: ReadOptions | undefined): Promise<Extent[]>;
  /** See `ImageReader.zeroRun`. */
  zeroRun(offset: number, length: number, options: ReadOptions | undefined): Promise<number>;
  /** The packed bytes without what lies behind them, where the table does not know their exact length. */
  trim?(packed: Buffer): Buffer;
}

/** A stored run of at least this much is not gathered. */
const STREAM_BYTES = 256 * 1024;

/** Of the disk; a window is at least one extent. */
const WINDOW_BYTES = 512 * 1024;

/** What lies this near to each other in the object comes with one request. */
const MAX_GAP_BYTES = 64 * 1024;

/** One request brings at most this, or one cluster. */
const MAX_REQUEST_BYTES = 2 * 1024 * 1024;

/** Clusters that are only needed in part are kept, unpacked, up to so many bytes per image. */
const CLUSTER_BUDGET_BYTES = 8 * 1024 * 1024;

export class MappedReader implements ImageReader {
  readonly size: number;
  readonly #source: ImageReader;
  readonly #map: BlockMap;
  /** Clusters that were needed in part, by where they lie; in the order of their last use. */
  readonly #clusters = new Map<number, { work: SharedWork<Buffer>; bytes: number }>();
  #clusterBytes = 0;

  constructor(source: ImageReader, map: BlockMap) {
    this.size = map.size;
    this.#source = source;
    this.#map = map;
  }

  zeroRun(offset: number, length: number, options?: ReadOptions): Promise<number> {
    return this.#map.zeroRun(offset, length, options);
  }

  async read(offset: number, length: number, sink: Sink, options: ReadOptions = {}): Promise<void> {
    const steps = stepsOf(await this.#map.extents(offset, length, options));
    const stopped = new AbortController();
    const signal = options.signal === undefined ? stopped.signal : AbortSignal.any([options.signal, stopped.signal]);
    const gather = (step: Step | undefined): Promise<Gathered> | undefined => {
      if (step?.kind !== "window") return undefined;
      const gathering = this.#gather(step.extents, { ...options, signal });
      gathering.catch(() => undefined); // met when its turn comes
      return gathering;
    };
    let next = gather(steps[0]);
    try {
      for (const [index, step] of steps.entries()) {
        const gathered = await next;
        next = gather(steps[index + 1]);
        if (step.kind === "zero") await sendZeros(step.length, sink);
        else if (step.kind === "stored") {
          await (step.source ?? this.#source).read(step.at, step.length, sink, options);
        } else {
          for (const extent of step.extents) {
            if (extent.kind === "zero") await sendZeros(extent.length, sink);
            else await sink(gathered!.get(extent)!);
          }
        }
      }
    } finally {
      stopped.abort(options.signal?.reason);
      await next?.catch(() => undefined); // nothing is under way any more when this has returned
    }
  }

  async #gather(extents: readonly Extent[], options: ReadOptions): Promise<Gathered> {
    const partly = (extent: Extent): extent is Packed => extent.kind === "packed" && extent.length < extent.bytes;
    const whole = extents.filter((extent) => extent.kind !== "zero" && !partly(extent)) as (Stored | Packed)[];
    const requests = requestsFor(whole);
    const work = [
      ...requests.map(async (request) => {
        const bytes = await readBytes(request.source ?? this.#source, request.at, request.length, options);
        return Promise.all(
          request.extents.map(async (extent): Promise<[Extent, Buffer]> => {
            const from = extent.at - request.at;
            if (extent.kind === "stored") return [extent, bytes.subarray(from, from + extent.length)];
            return [extent, await this.#unpack(extent, bytes.subarray(from, from + extent.packedBytes))];
          }),
        );
      }),
      ...extents.filter(partly).map(async (extent): Promise<[Extent, Buffer][]> => {
        const cluster = await this.#cluster(extent, options);
        return [[extent, cluster.subarray(extent.skip, extent.skip + extent.length)]];
      }),
    ];
    const outcomes = await Promise.allSettled(work);
    const gathered: Gathered = new Map();
    for (const outcome of outcomes) {
      if (outcome.status === "rejected") throw outcome.reason;
      for (const [extent, bytes] of outcome.value) gathered.set(extent, bytes);
    }
    return gathered;
  }

  async #unpack(extent: Packed, packed: Buffer): Promise<Buffer> {
    try {
      return await unpack(extent.codec, this.#map.trim?.(packed) ?? packed, extent.bytes, extent.least);
    } catch (cause) {
      const where = `the ${extent.packedBytes} compressed bytes at ${extent.at} are not what they should be`;
      throw damagedImage(this.#map.name, where, cause);
    }
  }

  /** All of a cluster that is needed in part: the other parts will be, too. */
  async #cluster(extent: Packed, options: ReadOptions): Promise<Buffer> {
    const known = this.#clusters.get(extent.at)?.work;
    const work = known?.aborted === false ? known : this.#bring(extent, options);
    this.#forget(extent.at);
    this.#clusters.set(extent.at, { work, bytes: extent.bytes });
    this.#clusterBytes += extent.bytes;
    while (this.#clusterBytes > CLUSTER_BUDGET_BYTES && this.#clusters.size > 1) {
      this.#forget(this.#clusters.keys().next().value!);
    }
    try {
      return await work.join(options.signal);
    } catch (error) {
      if (this.#clusters.get(extent.at)?.work === work) this.#forget(extent.at);
      // What failed for somebody else, who may have been in the background, is tried again for us.
      if (work !== known || options.signal?.aborted === true) throw error;
      return this.#cluster(extent, options);
    }
  }

  #forget(at: number): void {
    this.#clusterBytes -= this.#clusters.get(at)?.bytes ?? 0;
    this.#clusters.delete(at);
  }

  #bring(extent: Packed, options: ReadOptions): SharedWork<Buffer> {
    return new SharedWork(async (signal) => {
      const packed = await readBytes(this.#source, extent.at, extent.packedBytes, { ...options, signal });
      return this.#unpack(extent, packed);
    });
  }
}

type Gathered = Map<Extent, Buffer>;

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

/** How far a question about zeros looks first, and how much further each time that there were nothing but zeros. */
const FIRST_LOOK_BYTES = 1024 * 1024;
const LOOK_GROWTH = 8;
const LOOKS = 8;

/**
 * Zeros from `offset` on, as the extents have them.
 * @param most bytes of the disk that are looked at in one go
 */
export async function leadingZeros(
  map: Pick<BlockMap, "extents">,
  most: number,
  offset: number,
  length: number,
  options: ReadOptions | undefined,
): Promise<number> {
  let zeros = 0;
  let look = FIRST_LOOK_BYTES;
  for (let looks = 0; zeros < length && looks < LOOKS; looks++) {
    for (const extent of await map.extents(offset + zeros, Math.min(look, length - zeros), options)) {
      if (extent.kind !== "zero") return zeros;
      zeros += extent.length;
    }
    look = Math.min(look * LOOK_GROWTH, Math.max(most, FIRST_LOOK_BYTES));
  }
  return zeros;
}
