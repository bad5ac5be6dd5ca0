import { unsupportedImage, damagedImage, type ImageReader, type OpenContext } from "../image-format.ts";
import { u64be, within } from "../integers.ts";
import { readBytes } from "../read-bytes.ts";

/** "QFI\xfb" */
export const QCOW2_MAGIC = 0x514649fb;

const FORMAT = "qcow2";

/** Of the L1 table, as qemu has it. */
const MAX_L1_BYTES = 32 * 1024 * 1024;

/** Bits of the header's incompatible features that are understood, or do not matter to who only reads. */
const DIRTY = 1;
const CORRUPT = 2;
const EXTERNAL_DATA = 4;
const COMPRESSION_TYPE = 8;
const EXTENDED_L2 = 16;
const KNOWN_FEATURES = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION_TYPE | EXTENDED_L2;

const BACKING_FORMAT_EXTENSION = 0xe2792aca;

/** What the header says, checked. Sizes and offsets are bytes. */
export interface Qcow2Header {
  version: number;
  /** of the disk */
  size: number;
  clusterBytes: number;
  l1Offset: number;
  l1Entries: number;
  /** Clusters have 32 parts, each with a state of its own. */
  extendedL2: boolean;
  compression: "deflate" | "zstd";
  backing: { name: string; format: string | undefined } | undefined;
}

/** @throws SourceError `image-unsupported`, `image-damaged` */
export async function readQcow2Header(source: ImageReader, { signal }: OpenContext): Promise<Qcow2Header> {
  const options = signal === undefined ? {} : { signal };
  if (source.size < 72) throw damagedImage(FORMAT, `it has ${source.size} bytes, less than a header`);
  // The header, its extensions and the backing file's name lie within the first cluster, mostly at its beginning.
  const head = await readBytes(source, 0, Math.min(4096, source.size), options);
  const version = head.readUInt32BE(4);
  if (version !== 2 && version !== 3) throw unsupportedImage(FORMAT, `has version ${version}; 2 and 3 can be read`);
  const features = version === 2 ? 0 : u64be(head, 72);
  const headerBytes = version === 2 ? 72 : head.readUInt32BE(100);
  demandReadable(features, head.readUInt32BE(32));
  const clusterBits = head.readUInt32BE(20);
  const extendedL2 = (features & EXTENDED_L2) !== 0;
  if (clusterBits < (extendedL2 ? 14 : 9) || clusterBits > 21) {
    throw damagedImage(FORMAT, `its clusters have 2^${clusterBits} bytes`);
  }
  const clusterBytes = 2 ** clusterBits;
  const size = u64be(head, 24);
  if (!Number.isSafeInteger(size)) throw damagedImage(FORMAT, "its disk has more than 2^53 bytes");
  if (version === 3 && (headerBytes < 104 || headerBytes > clusterBytes)) {
    throw damagedImage(FORMAT, `its header has ${headerBytes} bytes`);
  }
  const l1Entries = head.readUInt32BE(36);
  const l1Offset = u64be(head, 40);
  const bytesPerL1Entry = clusterBytes * (clusterBytes / (extendedL2 ? 16 : 8));
  if (l1Entries * 8 > MAX_L1_BYTES || !within(l1Offset, l1Entries * 8, source.size)) {
    throw damagedImage(FORMAT, `its L1 table, ${l1Entries} entries at ${l1Offset}, lies outside of the file`);
  }
  if (l1Entries < Math.ceil(size / bytesPerL1Entry)) {
    throw damagedImage(FORMAT, `its L1 table of ${l1Entries} entries is too short for a disk of ${size} bytes`);
  }
  return {
    version,
    size,
    clusterBytes,
    l1Offset,
    l1Entries,
    extendedL2,
    compression: compressionOf(head, features, headerBytes),
    backing: backingOf(head, version, headerBytes),
  };
}

function demandReadable(features: number, encryption: number): void {
  if (encryption !== 0) throw unsupportedImage(FORMAT, "is encrypted", "decrypt it first: qemu-img convert");
  if (!Number.isFinite(features) || features > KNOWN_FEATURES) {
    throw unsupportedImage(FORMAT, `needs features that this version does not know (${features.toString(16)})`);
  }
  if ((features & CORRUPT) !== 0) {
    throw unsupportedImage(FORMAT, "is marked as corrupt", "repair it first: qemu-img check -r all");
  }
  if ((features & EXTERNAL_DATA) !== 0) {
    throw unsupportedImage(FORMAT, "has its data in another file", "join them first: qemu-img convert -O qcow2");
  }
}

function compressionOf(head: Buffer, features: number, headerBytes: number): "deflate" | "zstd" {
  if ((features & COMPRESSION_TYPE) === 0) return "deflate";
  const type = headerBytes > 104 && head.length > 104 ? head[104] : -1;
  if (type !== 0 && type !== 1) throw unsupportedImage(FORMAT, `has compression type ${type}`);
  return type === 0 ? "deflate" : "zstd";
}

function backingOf(head: Buffer, version: number, headerBytes: number): Qcow2Header["backing"] {
  const offset = u64be(head, 8);
  if (offset === 0) return undefined;
  const length = head.readUInt32BE(16);
  if (length === 0 || length > 1023 || !within(offset, length, head.length)) {
    throw damagedImage(FORMAT, `the name of its backing file, ${length} bytes at ${offset}, is out of place`);
  }
  const end = Math.min(offset, head.length);
  let format: string | undefined;
  for (let at = version === 2 ? 72 : headerBytes; at + 8 <= end;) {
    const type = head.readUInt32BE(at);
    const bytes = head.readUInt32BE(at + 4);
    if (type === 0 || at + 8 + bytes > end) break;
    if (type === BACKING_FORMAT_EXTENSION) format = head.toString("utf8", at + 8, at + 8 + bytes);
    at += 8 + Math.ceil(bytes / 8) * 8;
  }
  return { name: head.toString("utf8", offset, offset + length), format };
}
