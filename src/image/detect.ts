import { UllageError } from "../base/errors.ts";
import type { ImageFormat } from "./image-format.ts";
import { gzipFormat } from "./gzip.ts";
import { qcow2Format } from "./qcow2/qcow2.ts";
import { rawFormat } from "./raw.ts";
import { tarFormat } from "./tar.ts";
import { vhdFormat } from "./vhd.ts";
import { vhdxFormat } from "./vhdx.ts";
import { vmdkFormat } from "./vmdk.ts";
import { xzFormat } from "./xz.ts";
import { zstdFormat } from "./zstd.ts";

/** How many bytes of an object's beginning `detectFormat` wants to see. */
export const detectHeadBytes = 4096;

/** The formats that can be read; raw is asked last, because it takes anything. */
const formats: readonly ImageFormat[] = [
  qcow2Format,
  vmdkFormat,
  vhdxFormat,
  vhdFormat,
  tarFormat,
  gzipFormat,
  zstdFormat,
  xzFormat,
  rawFormat,
];

/**
 * Formats that a disk image often comes in, and that would make a broken disk if their bytes were served as they are.
 * ISO 9660, squashfs and other file systems are not among them: their bytes are the disk's.
 */
const unreadable: readonly Signature[] = [
  { name: "vdi", convert: "disk", matches: at(64, "\x7f\x10\xda\xbe") },
  { name: "qed", convert: "disk", matches: starts("QED\0") },
  { name: "parallels", convert: "disk", matches: (head) => /^Without?Fre(eSpace|SpacExt)/.test(text(head, 0, 16)) },
  { name: "bochs", convert: "disk", matches: starts("Bochs Virtual HD Image") },
  { name: "bzip2", convert: "bunzip2", matches: (head) => /^BZh[1-9]1AY&SY/.test(text(head, 0, 10)) },
  { name: "lz4", convert: "unlz4", matches: starts("\x04\x22\x4d\x18") },
  { name: "lzma", convert: "unlzma", matches: isLzma },
  { name: "lzop", convert: "lzop -d", matches: starts("\x89LZO\0\r\n\x1a\n") },
  { name: "rar", convert: "unrar x", matches: starts("Rar!\x1a\x07") },
  { name: "7z", convert: "7z x", matches: starts("7z\xbc\xaf\x27\x1c") },
  { name: "zip", convert: "unzip", matches: starts("PK\x03\x04") },
];

interface Signature {
  name: string;
  /** `disk`: qemu-img can make it raw; anything else is the command that unpacks it. */
  convert: string;
  matches(head: Uint8Array): boolean;
}

/** Names that `--format` takes, alone or, outermost first, joined by `+`. */
export const formatNames: readonly string[] = formats.map((format) => format.name);

/** @throws UllageError `format-unknown` */
export function formatNamed(name: string): ImageFormat {
  const named = formats.find((format) => format.name === name);
  if (named !== undefined) return named;
  const hint = `the formats are auto, ${formatNames.join(", ")}, and chains of them like tar+qcow2`;
  throw new UllageError("format-unknown", `there is no image format '${name}'`, { hint });
}

/**
 * The formats that a user asks for, outermost first.
 * @param requested `auto`, a name, or names joined by `+`
 * @throws UllageError `format-unknown` for what is none
 */
export function parseFormats(requested: string): ImageFormat[] {
  if (requested === "auto") return [];
  const chain = requested.split("+").map(formatNamed);
  const bad = chain.slice(0, -1).find(({ container }) => !container);
  if (bad === undefined) return chain;
  throw new UllageError("format-unknown", `nothing can be inside of ${bad.name}, as '${requested}' says`, {
    hint: `containers are ${formats.flatMap(({ name, container }) => (container ? [name] : [])).join(", ")}`,
  });
}

/**
 * The format of an object. Only asked at import: what a guest writes later is never looked at.
 * @param head the object's first `detectHeadBytes` bytes, or all of a shorter one
 * @param size bytes of the object; Infinity: unknown
 * @throws UllageError `format-unsupported` for content that cannot be read
 */
export function detectFormat(head: Uint8Array, size: number): ImageFormat {
  const foreign = unreadable.find((signature) => signature.matches(head));
  if (foreign !== undefined) {
    const how = foreign.convert === "disk" ? `qemu-img convert -O raw` : foreign.convert;
    const hint = `make it raw first (${how}), or serve its bytes as they are with --format raw`;
    throw new UllageError("format-unsupported", `the image is ${foreign.name}, which this version cannot read`, {
      hint,
    });
  }
  return formats.find((format) => format.detect(head, size))!;
}

/** It has no signature: the usual properties, a dictionary of 2^n bytes, and a size that nobody wrote or below 2^40. */
function isLzma(head: Uint8Array): boolean {
  if (head.length < 13 || head[0] !== 0x5d) return false;
  const view = new DataView(head.buffer, head.byteOffset, head.byteLength);
  const dictionary = view.getUint32(1, true);
  const size = view.getBigUint64(5, true);
  if (dictionary < 4096 || !Number.isInteger(Math.log2(dictionary))) return false;
  return size === 2n ** 64n - 1n || (size > 0n && size < 2n ** 40n);
}

function starts(signature: string): (head: Uint8Array) => boolean {
  return at(0, signature);
}

function at(offset: number, signature: string): (head: Uint8Array) => boolean {
  return (head) => text(head, offset, signature.length) === signature;
}

function text(head: Uint8Array, offset: number, length: number): string {
  return Buffer.from(head.buffer, head.byteOffset, head.byteLength).toString("latin1", offset, offset + length);
}
