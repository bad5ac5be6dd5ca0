import { UllageError } from "../base/errors.ts";
import type { ImageFormat } from "./image-format.ts";
import { rawFormat } from "./raw.ts";

/** How many bytes of an object's beginning `detectFormat` wants to see. */
export const detectHeadBytes = 4096;

/** The formats that can be read; raw is asked last, because it takes anything. */
const formats: readonly ImageFormat[] = [rawFormat];

/**
 * Formats that a disk image often comes in, and that would make a broken disk if their bytes were served as they are.
 * ISO 9660, squashfs and other file systems are not among them: their bytes are the disk's.
 */
const unreadable: readonly Signature[] = [
  { name: "qcow2", convert: "disk", matches: starts("QFI\xfb") },
  { name: "vmdk", convert: "disk", matches: either(starts("KDMV"), starts("COWD"), starts("# Disk DescriptorFile")) },
  // A dynamic disk begins with a copy of its footer; a fixed one has the footer only, and is raw but for that sector.
  { name: "vhd", convert: "disk", matches: starts("conectix") },
  { name: "vhdx", convert: "disk", matches: starts("vhdxfile") },
  { name: "vdi", convert: "disk", matches: at(64, "\x7f\x10\xda\xbe") },
  { name: "qed", convert: "disk", matches: starts("QED\0") },
  { name: "gzip", convert: "gunzip", matches: starts("\x1f\x8b\x08") },
  { name: "xz", convert: "unxz", matches: starts("\xfd7zXZ\0") },
  { name: "zstd", convert: "unzstd", matches: starts("\x28\xb5\x2f\xfd") },
  { name: "bzip2", convert: "bunzip2", matches: (head) => /^BZh[1-9]1AY&SY/.test(text(head, 0, 10)) },
  { name: "lz4", convert: "unlz4", matches: starts("\x04\x22\x4d\x18") },
  { name: "7z", convert: "7z x", matches: starts("7z\xbc\xaf\x27\x1c") },
  { name: "zip", convert: "unzip", matches: starts("PK\x03\x04") },
];

interface Signature {
  name: string;
  /** `disk`: qemu-img can make it raw; anything else is the command that unpacks it. */
  convert: string;
  matches(head: Uint8Array): boolean;
}

/** Names that `--format` takes. */
export const formatNames: readonly string[] = ["auto", ...formats.map((format) => format.name)];

/**
 * The format of an object. Only asked at import: what a guest writes later is never looked at.
 * @param head the object's first `detectHeadBytes` bytes, or all of a shorter one
 * @param size bytes of the object
 * @param requested `auto`, or the name of a format, which is then taken at its word
 * @throws UllageError `format-unknown` for a name that is none, `format-unsupported` for content that cannot be read
 */
export function detectFormat(head: Uint8Array, size: number, requested: string): ImageFormat {
  if (requested !== "auto") {
    const named = formats.find((format) => format.name === requested);
    if (named !== undefined) return named;
    const hint = `the formats are ${formatNames.join(", ")}`;
    throw new UllageError("format-unknown", `there is no image format ${requested}`, { hint });
  }
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

function starts(signature: string): (head: Uint8Array) => boolean {
  return at(0, signature);
}

function at(offset: number, signature: string): (head: Uint8Array) => boolean {
  return (head) => text(head, offset, signature.length) === signature;
}

function either(...tests: ((head: Uint8Array) => boolean)[]): (head: Uint8Array) => boolean {
  return (head) => tests.some((test) => test(head));
}

function text(head: Uint8Array, offset: number, length: number): string {
  return Buffer.from(head.buffer, head.byteOffset, head.byteLength).toString("latin1", offset, offset + length);
}
