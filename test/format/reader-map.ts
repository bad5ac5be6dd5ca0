/** Part of the independent reader (reader.ts): FORMAT.md "map.<n>: checkpoints" and "maps/<id>: frozen maps". */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { blockBytes, crc32c, Damaged, demand, demandHeader, headerBytes, hex, numbers, u64 } from "./reader-bytes.ts";

const chunkBlocks = 1024;

/** Who holds what: all that is needed to read a disk. */
export interface OwnerMap {
  size: number;
  /** The owner of each block, for whole chunks. */
  owners: Uint16Array;
  table: Map<number, { kind: "layer" | "blob"; id: string }>;
}

export interface Checkpoint extends OwnerMap {
  volumeId: string;
  number: number;
  cut: number;
}

const noId = "00".repeat(16);

export function newestMap(data: string, directory: string, id: string): Checkpoint {
  let reason: Error = new Damaged(`${directory} has no checkpoint`);
  for (const number of numbers(directory, "map").toReversed()) {
    try {
      const map = parseMap(data, readFileSync(join(directory, `map.${number}`)));
      demand(map.volumeId === id && map.number === number, `map.${number} is of another volume or number`);
      return map;
    } catch (error) {
      if (!(error instanceof Damaged)) throw error;
      reason = error;
    }
  }
  throw reason;
}

function parseMap(data: string, file: Buffer): Checkpoint {
  demandHeader(file, "ULLAGEMP");
  const size = u64(file, 48);
  const said = { volumeId: hex(file, 16), number: u64(file, 32), cut: u64(file, 40) };
  const base = hex(file, 80);
  if (base === noId) return { ...said, ...parseFrames(file, size) };
  const map = frozenMap(data, base);
  demand(map !== undefined, `the frozen map ${base} is missing`);
  demand(map.size <= size, `the frozen map ${base} is larger than what begins with it`);
  parseFrames(file, 0, map.table);
  resize(map, size);
  return { ...said, ...map };
}

/** Undefined: the file is not there. */
export function frozenMap(data: string, id: string): OwnerMap | undefined {
  const path = join(data, "maps", id);
  if (!existsSync(path)) return undefined;
  const file = readFileSync(path);
  demandHeader(file, "ULLAGEFM");
  demand(hex(file, 16) === id, `${path} is another frozen map`);
  return parseFrames(file, u64(file, 48));
}

/** Makes it larger; what is new belongs to nobody. */
export function resize(map: OwnerMap, size: number): void {
  demand(size >= map.size && size % 512 === 0, `a size of ${size} behind one of ${map.size}`);
  const owners = new Uint16Array(Math.ceil(Math.ceil(size / blockBytes) / chunkBlocks) * chunkBlocks);
  owners.set(map.owners.subarray(0, Math.ceil(map.size / blockBytes)));
  map.owners = owners;
  map.size = size;
}

/** @param table what the frames' own table is added to */
function parseFrames(file: Buffer, size: number, table: OwnerMap["table"] = new Map()): OwnerMap {
  const owners = new Uint16Array(Math.ceil(Math.ceil(size / blockBytes) / chunkBlocks) * chunkBlocks);
  let at = headerBytes;
  let crc = file.readUInt32LE(12);
  let block = 0;
  const give = (owner: number, blocks: number): void => {
    demand(blocks > 0 && block + blocks <= owners.length, "a map of more blocks than the volume has");
    demand(owner === 0 || table.has(owner), `owner ${owner} is not in the table`);
    owners.fill(owner, block, (block += blocks));
  };
  for (let frame = 0; ; frame++) {
    demand(at + 8 <= file.length, "a map without an end");
    const length = file.readUInt32LE(at);
    const payload = file.subarray(at + 8, at + 8 + length);
    demand(length <= 4 << 20 && payload.length === length, `a frame of ${length} bytes`);
    crc = crc32c(payload, crc32c(file.subarray(at, at + 4), crc));
    demand(file.readUInt32LE(at + 4) === crc, `the checksum of the frame at ${at} is wrong`);
    if (length === 0) break;
    if (frame === 0) parseTable(payload, table);
    else parseItems(payload, give);
    at += 8 + length;
  }
  demand(block === owners.length, `a map of ${block} blocks instead of ${owners.length}`);
  return { size, owners, table };
}

function parseTable(payload: Buffer, table: OwnerMap["table"]): void {
  const count = payload.readUInt32LE(0);
  demand(payload.length === 4 + 24 * count, `an owner table of ${count} in ${payload.length} bytes`);
  for (let at = 4; at < payload.length; at += 24) {
    const kind = ([undefined, "layer", "blob"] as const)[payload[at + 2]];
    demand(kind !== undefined, `an owner of kind ${payload[at + 2]}`);
    const number = payload.readUInt16LE(at);
    demand(!table.has(number), `two owners have the number ${number}`);
    table.set(number, { kind, id: hex(payload, at + 8) });
  }
}

function parseItems(payload: Buffer, give: (owner: number, blocks: number) => void): void {
  for (let at = 0; at < payload.length;) {
    const [kind, value] = [payload.readUInt16LE(at), payload.readUInt16LE(at + 2)];
    at += 4;
    if (kind === 1) {
      give(value, payload.readUInt32LE(at) * chunkBlocks);
      at += 4;
    } else if (kind === 2) {
      let blocks = 0;
      for (const end = at + 4 * value; at < end; at += 4) {
        give(payload.readUInt16LE(at), payload.readUInt16LE(at + 2));
        blocks += payload.readUInt16LE(at + 2);
      }
      demand(blocks === chunkBlocks, `runs of ${blocks} blocks`);
    } else {
      demand(kind === 3, `an item of kind ${kind}`);
      for (const end = at + 2 * chunkBlocks; at < end; at += 2) give(payload.readUInt16LE(at), 1);
    }
  }
}
