import type { ReadOptions } from "../backend/backend.ts";
import { damagedImage, unsupportedImage, type ImageFormat, type ImageReader } from "./image-format.ts";
import { PageCache } from "./page-cache.ts";
import { windowReader } from "./read-bytes.ts";

/*
 * A tar archive that holds a disk: a layer of a KubeVirt containerdisk (`disk/…`), or an archive of one file. POSIX
 * (ustar, pax) and GNU headers. Only headers are read; the member's bytes are a range of the archive's.
 */

const FORMAT = "tar";
const BLOCK = 512;

/** An archive with more members is not one that was made to hold a disk. */
const MAX_MEMBERS = 4096;
/** Of a long name, or a pax header. */
const MAX_RECORD_BYTES = 64 * 1024;

interface Member {
  name: string;
  /** Where its bytes are in the archive, and how many. */
  offset: number;
  size: number;
  /** Its holes were left out: the bytes are not the file's. */
  sparse: boolean;
  regular: boolean;
}

export const tarFormat: ImageFormat = {
  name: FORMAT,
  container: true,
  detect: (head) => isHeader(Buffer.from(head.buffer, head.byteOffset, head.length)),
  async open(source, { signal }) {
    const disk = choose(await membersOf(source, signal === undefined ? {} : { signal }));
    if (disk.sparse) {
      const hint = "pack it without --sparse, or unpack it first";
      throw unsupportedImage(FORMAT, `holds ${disk.name} as a sparse member`, hint);
    }
    if (disk.offset + disk.size > source.size) throw damagedImage(FORMAT, `it ends within ${disk.name}`);
    return windowReader(source, disk.offset, disk.size);
  },
};

/** The disk: `disk/*.img`, or what else is in `disk/`, or the only file there is. */
function choose(members: Member[]): Member {
  const files = members.filter(({ regular }) => regular);
  const inDisk = files.filter(({ name }) => /^disk\/[^/]+$/.test(name));
  const images = inDisk.filter(({ name }) => name.endsWith(".img"));
  for (const candidates of [images, inDisk, files]) {
    if (candidates.length === 1) return candidates[0];
    if (candidates.length > 1) {
      const names = candidates.slice(0, 5).map(({ name }) => name);
      throw unsupportedImage(
        FORMAT,
        `holds several files that may be the disk: ${names.join(", ")}`,
        "unpack it first",
      );
    }
  }
  throw unsupportedImage(FORMAT, "holds no file", "name another archive");
}

async function membersOf(source: ImageReader, options: ReadOptions): Promise<Member[]> {
  const pages = new PageCache(source);
  const members: Member[] = [];
  let long: { path?: string; size?: number; sparse?: boolean } = {};
  for (let at = 0, count = 0; at + BLOCK <= source.size; count++) {
    if (count > MAX_MEMBERS) throw unsupportedImage(FORMAT, `has more than ${MAX_MEMBERS} members`, "unpack it first");
    const header = await pages.bytes(at, BLOCK, options);
    if (header.every((byte) => byte === 0)) break;
    if (!isHeader(header)) throw damagedImage(FORMAT, `there is no header at ${at}`);
    const type = String.fromCharCode(header[156]);
    const size = long.size ?? numberAt(header, 124, 12);
    if (!Number.isSafeInteger(size) || size < 0)
      throw damagedImage(FORMAT, `the member at ${at} has an impossible size`);
    let offset = at + BLOCK;
    // Of a sparse member the list of its parts may go on in blocks of its own.
    for (let more = type === "S" && header[482] === 1; more; offset += BLOCK) {
      if (offset + BLOCK > source.size) throw damagedImage(FORMAT, `the member at ${at} has no end`);
      more = (await pages.bytes(offset, BLOCK, options))[504] === 1;
    }
    at = offset + Math.ceil(size / BLOCK) * BLOCK;
    if (type === "L" || type === "x") {
      if (size > MAX_RECORD_BYTES || offset + size > source.size)
        throw damagedImage(FORMAT, `a header of ${size} bytes`);
      const record = await pages.bytes(offset, size, options);
      if (type === "L") long.path = cString(record, 0, size);
      else Object.assign(long, paxRecord(record));
      continue;
    }
    if (type === "K" || type === "g") continue;
    members.push({
      name: (long.path ?? nameOf(header)).replace(/^(?:\.?\/)+/, ""),
      offset,
      size,
      sparse: type === "S" || long.sparse === true,
      regular: type === "0" || type === "\0" || type === "7" || type === "S",
    });
    long = {};
  }
  return members;
}

/** The sum of all bytes, with those of the sum itself as spaces. */
function isHeader(header: Buffer): boolean {
  if (header.length < BLOCK || header.toString("latin1", 257, 262) !== "ustar") return false;
  let sum = 0;
  for (let at = 0; at < BLOCK; at++) sum += at >= 148 && at < 156 ? 0x20 : header[at];
  return sum === numberAt(header, 148, 8);
}

/** Octal digits; or, of GNU, base 256 behind a byte of 0x80. */
function numberAt(header: Buffer, at: number, length: number): number {
  if ((header[at] & 0x80) === 0) {
    const digits = cString(header, at, at + length).trim();
    return /^[0-7]*$/.test(digits) ? Number.parseInt(digits || "0", 8) : NaN;
  }
  let value = header[at] & 0x7f;
  for (let byte = at + 1; byte < at + length; byte++) value = value * 256 + header[byte];
  return value;
}

function nameOf(header: Buffer): string {
  const prefix = header.toString("latin1", 257, 263) === "ustar\0" ? cString(header, 345, 500) : "";
  const name = cString(header, 0, 100);
  return prefix === "" ? name : `${prefix}/${name}`;
}

function cString(bytes: Buffer, from: number, to: number): string {
  const end = bytes.indexOf(0, from);
  return bytes.toString("utf8", from, end < 0 || end > to ? to : end);
}

/** `<length> <key>=<value>\n`, again and again. */
function paxRecord(record: Buffer): { path?: string; size?: number; sparse?: boolean } {
  const found: { path?: string; size?: number; sparse?: boolean } = {};
  for (let at = 0; at < record.length;) {
    const space = record.indexOf(0x20, at);
    const length = space < 0 ? 0 : Number(record.toString("latin1", at, space));
    if (!Number.isSafeInteger(length) || length < space - at + 3 || at + length > record.length) {
      throw damagedImage(FORMAT, "a pax header is not one");
    }
    const [key, value = ""] = record.toString("utf8", space + 1, at + length - 1).split(/=(.*)/s);
    if (key === "path") found.path = value;
    else if (key === "size") found.size = Number(value);
    else if (key.startsWith("GNU.sparse.")) found.sparse = true;
    at += length;
  }
  return found;
}
