/** Part of the independent reader (reader.ts): FORMAT.md "map.<n>: checkpoints". */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { blockBytes, crc32c, Damaged, demand, demandHeader, headerBytes, hex, numbers, u64 } from "./reader-bytes.ts";

const chunkBlocks = 1024;

export interface OwnerMap {
  volumeId: string;
  number: number;
  cut: number;
  size: number;
  /** The owner of each block, for whole chunks. */
  owners: Uint16Array;
  table: Map<number, { kind: "layer" | "blob"; id: string }>;
}

export function newestMap(directory: string, id: string): OwnerMap {
  let reason: Error = new Damaged(`${directory} has no checkpoint`);
  for (const number of numbers(directory, "map").toReversed()) {
    try {
      const map = parseMap(readFileSync(join(directory, `map.${number}`)));
      demand(map.volumeId === id && map.number === number, `map.${number} is of another volume or number`);
      return map;
    } catch (error) {
      if (!(error instanceof Damaged)) throw error;
      reason = error;
    }
  }
  throw reason;
}

export function parseMap(file: Buffer): OwnerMap {
  demandHeader(file, "ULLAGEMP");
  const size = u64(file, 48);
  const owners = new Uint16Array(Math.ceil(Math.ceil(size / blockBytes) / chunkBlocks) * chunkBlocks);
  const table: OwnerMap["table"] = new Map();
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
  return { volumeId: hex(file, 16), number: u64(file, 32), cut: u64(file, 40), size, owners, table };
}

function parseTable(payload: Buffer, table: OwnerMap["table"]): void {
  const count = payload.readUInt32LE(0);
  demand(payload.length === 4 + 24 * count, `an owner table of ${count} in ${payload.length} bytes`);
  for (let at = 4; at < payload.length; at += 24) {
    const kind = ([undefined, "layer", "blob"] as const)[payload[at + 2]];
    demand(kind !== undefined, `an owner of kind ${payload[at + 2]}`);
    table.set(payload.readUInt16LE(at), { kind, id: hex(payload, at + 8) });
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
