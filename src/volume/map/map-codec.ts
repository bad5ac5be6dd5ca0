import { CorruptionError } from "../../base/errors.ts";
import { chunkBlocks, maxOwner, type OwnerMap } from "./owner-map.ts";
import { ownerKindOf, ownerKinds, OwnerTable } from "./owner-table.ts";

/*
 * An owner map as bytes: the owner table, then the chunks in order, in pieces ("frames") of bounded size so that neither
 * side needs the whole of it in memory or a long turn of the event loop. Little-endian.
 *
 *     table   u32 count, then per owner: u16 id, u8 kind (1 layer, 2 blob), u8 0, u32 0, 16 bytes id
 *     uniform u8 1, u8 0, u16 owner, u32 n          n chunks that belong to one owner
 *     runs    u8 2, u8 0, u16 n, n x (u16 owner, u16 blocks)      one mixed chunk; the blocks add up to 1024
 *     raw     u8 3, u8 0, u16 0, 1024 x u16 owner                one mixed chunk that would be larger as runs
 *
 * No item spans two frames.
 */

const frameTarget = 64 * 1024;
const ownerBytes = 24;
/** Chunks between two turns of the event loop: a fraction of a millisecond. */
const chunksPerSlice = 65536;
/** What a mixed chunk costs beside one that has a single owner. */
const mixedWeight = 64;
const rawBytes = 4 + chunkBlocks * 2;

/** Frames, in order; without a map only its table. Each is valid until the next one is asked for. */
export function* encodeMap(map: OwnerMap | undefined, table: OwnerTable): Generator<Buffer> {
  yield encodeTable(table);
  if (map === undefined) return;
  const frame = Buffer.allocUnsafe(frameTarget + rawBytes);
  let length = 0;
  let slice = 0;
  for (let chunk = 0; chunk < map.chunks;) {
    const owner = map.uniformOwner(chunk);
    if (owner >= 0) {
      let end = chunk + 1;
      const limit = Math.min(map.chunks, chunk + chunksPerSlice);
      while (end < limit && map.uniformOwner(end) === owner) end++;
      frame.writeUInt16LE(1, length);
      frame.writeUInt16LE(owner, length + 2);
      frame.writeUInt32LE(end - chunk, length + 4);
      length += 8;
      slice += end - chunk;
      chunk = end;
    } else {
      length += encodeMixed(map, chunk, frame, length);
      slice += mixedWeight;
      chunk++;
    }
    if (length >= frameTarget || slice >= chunksPerSlice) {
      yield frame.subarray(0, length);
      length = 0;
      slice = 0;
    }
  }
  if (length > 0) yield frame.subarray(0, length);
}

/** The owners that some block of the map has; 0 is not among them. */
export async function usedOwners(map: OwnerMap): Promise<Set<number>> {
  const used = new Set<number>();
  let slice = 0;
  let last = 0;
  for (let chunk = 0; chunk < map.chunks; chunk++) {
    const uniform = map.uniformOwner(chunk);
    if (uniform >= 0) {
      if (uniform !== last) used.add((last = uniform));
      slice++;
    } else {
      const owners = map.mixedOwners(chunk);
      const length = Math.min(chunkBlocks, map.blocks - chunk * chunkBlocks);
      for (let block = 0; block < length; block = map.mixedRunEnd(chunk, block, length)) {
        if (owners[block] !== last) used.add((last = owners[block]));
      }
      slice += mixedWeight;
    }
    if (slice < chunksPerSlice) continue;
    slice = 0;
    await new Promise(setImmediate);
  }
  used.delete(0);
  return used;
}

function encodeTable(table: OwnerTable): Buffer {
  const owners = [...table.entries()];
  const frame = Buffer.alloc(4 + owners.length * ownerBytes);
  frame.writeUInt32LE(owners.length, 0);
  owners.forEach(([id, owner], index) => {
    const at = 4 + index * ownerBytes;
    frame.writeUInt16LE(id, at);
    frame.writeUInt8(ownerKinds[owner.kind], at + 2);
    frame.write(owner.id, at + 8, "hex");
  });
  return frame;
}

function encodeMixed(map: OwnerMap, chunk: number, frame: Buffer, at: number): number {
  const owners = map.mixedOwners(chunk);
  // Blocks beyond the end of the volume in the last chunk count as zeros.
  const length = Math.min(chunkBlocks, map.blocks - chunk * chunkBlocks);
  let runs = 0;
  let position = at + 4;
  const rawFrom = at + rawBytes;
  for (let block = 0; block < chunkBlocks && position + 4 < rawFrom;) {
    const owner = block < length ? owners[block] : 0;
    let end = block < length ? map.mixedRunEnd(chunk, block, length) : chunkBlocks;
    if (end === length && owner === 0) end = chunkBlocks;
    frame.writeUInt16LE(owner, position);
    frame.writeUInt16LE(end - block, position + 2);
    position += 4;
    runs++;
    block = end;
    if (block === chunkBlocks) {
      frame.writeUInt16LE(2, at);
      frame.writeUInt16LE(runs, at + 2);
      return position - at;
    }
  }
  frame.writeUInt32LE(3, at);
  for (let block = 0; block < chunkBlocks; block++) {
    frame.writeUInt16LE(block < length ? owners[block] : 0, at + 4 + block * 2);
  }
  return rawBytes;
}

/** Takes in the chunks of a map, in order; an `OwnerMap` does. */
export interface MapSink {
  /** of the disk; the last one may be short */
  readonly chunks: number;
  /** `count` chunks belong to `owner`. */
  setChunks(chunk: number, count: number, owner: number): void;
  /** @param owners of all 1024 blocks; valid during the call */
  setMixedChunk(chunk: number, owners: Uint16Array): void;
  /** Comes before the chunks: `owner` is a blob. */
  noteBlob(owner: number): void;
}

/** Looks at a map that is read piece by piece. */
export interface MapVisitor extends Omit<MapSink, "chunks" | "noteBlob"> {
  /** @param blocks of the disk @returns whether it wants to see the chunks */
  begin(table: OwnerTable, blocks: number): boolean;
  /** After each piece: when the next one may come; undefined: at once. */
  rest(): Promise<void> | undefined;
}

/** Takes frames in order and fills a map and its table. */
export class MapDecoder {
  readonly #map: MapSink;
  readonly #table: OwnerTable;
  readonly #path: string;
  readonly #owners = new Uint16Array(chunkBlocks);
  #chunk = 0;
  #haveTable = false;

  constructor(map: MapSink, table: OwnerTable, path: string) {
    this.#map = map;
    this.#table = table;
    this.#path = path;
  }

  /** @throws CorruptionError */
  add(frame: Buffer): void {
    if (!this.#haveTable) {
      this.#haveTable = true;
      this.#addTable(frame);
      return;
    }
    this.addItems(frame, 0, Infinity);
  }

  /** Takes some items of a frame that is not the table. @returns where the next one begins */
  addItems(frame: Buffer, from: number, limit: number): number {
    let at = from;
    for (let count = 0; at < frame.length && count < limit; count++) at = this.#addItem(frame, at);
    return at;
  }

  /** @throws CorruptionError when frames are missing */
  finish(): void {
    if (this.#chunk !== this.#map.chunks) this.#refuse(`describes ${this.#chunk} chunks of ${this.#map.chunks}`);
  }

  #addTable(frame: Buffer): void {
    const count = frame.length >= 4 ? frame.readUInt32LE(0) : -1;
    if (frame.length !== 4 + count * ownerBytes) this.#refuse("has an owner table of a wrong length");
    for (let index = 0; index < count; index++) {
      const at = 4 + index * ownerBytes;
      const kind = ownerKindOf(frame.readUInt8(at + 2), this.#path);
      const owner = frame.readUInt16LE(at);
      if (owner === 0 || owner > maxOwner || this.#table.has(owner))
        this.#refuse(`has an impossible owner id ${owner}`);
      const id = frame.toString("hex", at + 8, at + 24);
      this.#table.put(owner, { kind, id });
      if (kind === "blob") this.#map.noteBlob(owner);
    }
  }

  #addItem(frame: Buffer, at: number): number {
    if (at + 4 > frame.length) this.#refuse("ends inside an item");
    const kind = frame.readUInt16LE(at);
    const small = frame.readUInt16LE(at + 2);
    if (kind === 1) {
      if (at + 8 > frame.length) this.#refuse("ends inside an item");
      const count = frame.readUInt32LE(at + 4);
      if (count === 0 || this.#chunk + count > this.#map.chunks) this.#refuse("describes too many chunks");
      this.#checkOwner(small);
      this.#map.setChunks(this.#chunk, count, small);
      this.#chunk += count;
      return at + 8;
    }
    if (this.#chunk >= this.#map.chunks) this.#refuse("describes too many chunks");
    const end = kind === 2 ? this.#readRuns(frame, at + 4, small) : kind === 3 ? this.#readRaw(frame, at + 4) : -1;
    if (end < 0) this.#refuse(`has an item of unknown kind ${kind}`);
    this.#map.setMixedChunk(this.#chunk++, this.#owners);
    return end;
  }

  #readRuns(frame: Buffer, from: number, runs: number): number {
    if (from + runs * 4 > frame.length) this.#refuse("ends inside an item");
    let block = 0;
    for (let at = from; at < from + runs * 4; at += 4) {
      const owner = frame.readUInt16LE(at);
      const length = frame.readUInt16LE(at + 2);
      if (length === 0 || block + length > chunkBlocks) this.#refuse("has runs that do not fit their chunk");
      this.#checkOwner(owner);
      this.#owners.fill(owner, block, block + length);
      block += length;
    }
    if (block !== chunkBlocks) this.#refuse("has runs that do not fill their chunk");
    return from + runs * 4;
  }

  #readRaw(frame: Buffer, from: number): number {
    if (from + chunkBlocks * 2 > frame.length) this.#refuse("ends inside an item");
    for (let block = 0; block < chunkBlocks; block++) {
      const owner = frame.readUInt16LE(from + block * 2);
      this.#checkOwner(owner);
      this.#owners[block] = owner;
    }
    return from + chunkBlocks * 2;
  }

  #checkOwner(owner: number): void {
    if (owner !== 0 && !this.#table.has(owner)) this.#refuse(`refers to owner ${owner}, which is not in its table`);
  }

  #refuse(why: string): never {
    throw new CorruptionError(`${this.#path} ${why}`);
  }
}

/**
 * Reads the frames of a map for a visitor, none of it staying in memory.
 * @param read shows the frames in order until it is told that no more are needed (`readFrames`)
 */
export async function visitFrames(
  visitor: MapVisitor,
  blocks: number,
  path: string,
  read: (onFrame: (frame: Buffer) => boolean | Promise<void> | undefined) => Promise<unknown>,
): Promise<OwnerTable> {
  const table = new OwnerTable();
  const chunks = Math.ceil(blocks / chunkBlocks);
  const decoder = new MapDecoder(
    {
      chunks,
      setChunks: (chunk, count, owner) => visitor.setChunks(chunk, count, owner),
      setMixedChunk: (chunk, owners) => visitor.setMixedChunk(chunk, owners),
      noteBlob: () => undefined,
    },
    table,
    path,
  );
  let wanted: boolean | undefined;
  await read((frame) => {
    if (wanted !== undefined) return visitItems(visitor, decoder, frame);
    decoder.add(frame);
    wanted = visitor.begin(table, blocks);
    return wanted ? undefined : true;
  });
  if (wanted === true) decoder.finish();
  return table;
}

/** One mixed chunk takes some two microseconds. */
const itemsPerPiece = 64;

async function visitItems(visitor: MapVisitor, decoder: MapDecoder, frame: Buffer): Promise<void> {
  for (let at = 0; at < frame.length;) {
    at = decoder.addItems(frame, at, itemsPerPiece);
    await visitor.rest();
  }
}
