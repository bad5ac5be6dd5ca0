/** Part of the independent reader (reader.ts): what holds blocks, FORMAT.md "layers/<id>" and "blobs/<id>". */
import { createHash } from "node:crypto";
import { closeSync, existsSync, fstatSync, openSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { crc32c, demand, demandHeader, demandVersion, headerBytes, hex, readFully, text, u64 } from "./reader-bytes.ts";

/** Bytes that were never fetched from the volume's source. */
export class NotFetched extends Error {}

export interface Owner {
  read(offset: number, length: number): Buffer;
  close(): void;
}

export function openLayer(data: string, id: string): Owner {
  const path = join(data, "layers", id);
  const file = openSync(path, "r");
  const header = readFully(file, path, 0, headerBytes);
  demandHeader(header, "ULLAGELY");
  demand(hex(header, 16) === id, `${path} is another layer`);
  return {
    read: (offset, length) => readFully(file, path, headerBytes + offset, length),
    close: () => closeSync(file),
  };
}

interface BlobMeta {
  format: string;
  version: number;
  id: string;
  url: string;
  imageFormat: string;
  identity: { size: number; version: string; strong: boolean };
  size: number;
  unitBytes: number;
}

export function openBlob(data: string, id: string, fullCopy: boolean): Owner {
  const directory = join(data, "blobs", id);
  const path = join(directory, "data");
  const meta = JSON.parse(readFileSync(join(directory, "meta.json"), "utf8")) as BlobMeta;
  demand(meta.format === "ullage-blob" && meta.id === id, `${directory}/meta.json is of another blob`);
  demandVersion(`${directory}/meta.json`, meta.version);
  const { size, unitBytes } = meta;
  const file = openSync(path, "r");
  const inode = fstatSync(file).ino;
  const mapPath = join(directory, "map");
  const bitmap = existsSync(mapPath)
    ? parseRangeMap(readFileSync(mapPath), meta, fullCopy ? undefined : inode)
    : Buffer.alloc(Math.ceil(Math.ceil(size / unitBytes) / 8));
  return {
    read(offset, length) {
      const bytes = Buffer.alloc(length);
      const end = Math.min(offset + length, size);
      for (let unit = Math.floor(offset / unitBytes); unit * unitBytes < end; unit++) {
        if (bitmap[unit >> 3] & (1 << (unit & 7))) continue;
        const where = `bytes ${unit * unitBytes} to ${Math.min((unit + 1) * unitBytes, size)}`;
        throw new NotFetched(`${where} were not fetched yet: get them from ${meta.url} (${meta.identity.version})`);
      }
      if (offset < end) readFully(file, path, offset, end - offset).copy(bytes);
      return bytes;
    },
    close: () => closeSync(file),
  };
}

/** @returns the bitmap. @throws Damaged when it is not to be believed: then nothing is ready */
export function parseRangeMap(file: Buffer, meta: BlobMeta, inode?: number): Buffer {
  const bytes = Math.ceil(Math.ceil(meta.size / meta.unitBytes) / 8);
  demand(file.length === 96 + bytes + 4 && text(file, 0, 8) === "ULLGRMAP", "no range map");
  demandVersion("the range map", file.readUInt32LE(8));
  demand(file.readUInt32LE(file.length - 4) === crc32c(file.subarray(0, -4)), "the checksum of the range map is wrong");
  const { url, imageFormat, identity } = meta;
  const source = JSON.stringify([url, imageFormat, identity.size, identity.version, identity.strong]);
  const fits =
    file.readUInt32LE(12) === 96 &&
    hex(file, 16) === meta.id &&
    file.subarray(32, 64).equals(createHash("sha256").update(source).digest()) &&
    [meta.size, meta.unitBytes, inode ?? u64(file, 80), bytes].every((value, i) => u64(file, 64 + 8 * i) === value);
  demand(fits, "the range map is of another blob, source or data file (see --full-copy)");
  return file.subarray(96, 96 + bytes);
}
