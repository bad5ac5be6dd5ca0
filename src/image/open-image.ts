import type { Sink } from "../backend/backend.ts";
import { detectFormat, detectHeadBytes, parseFormats } from "./detect.ts";
import {
  unsupportedImage,
  type ImageFormat,
  type ImageReader,
  type OpenContext,
  type Unpacker,
} from "./image-format.ts";
import { rawFormat } from "./raw.ts";
import { readBytes } from "./read-bytes.ts";
import { isCalledVhd, isFixedVhd, vhdFormat } from "./vhd.ts";

/** An image as it was found: which formats lie in each other, and the disk within. */
export interface OpenedImage {
  /** Names, outermost first, joined by `+`: `raw`, `qcow2`, `tar+qcow2`. */
  format: string;
  reader: ImageReader;
}

/** An image that has to be unpacked before there is a disk. */
export interface PackedImage {
  /** The formats that are known: `outer` and what is inside, as far as that can be told before all is unpacked. */
  format: string;
  /** The formats up to the one that is unpacked; empty: it is only fetched as a whole. */
  outer: string;
  /** Bytes that go through the unpacker. */
  packed: ImageReader;
  unpacker: NonNullable<ImageFormat["unpacker"]>;
  /** Which formats to look for in what was unpacked; `auto`, a format or a chain. */
  inner: string;
}

/** Formats that lie in each other at most. */
const MAX_DEPTH = 4;

/** As much is unpacked to see what is inside. */
const PEEK_BYTES = 1024 * 1024;
const PEEK_STEP_BYTES = 64 * 1024;

/**
 * Opens format in format until there is a disk, or one that has to be unpacked.
 * @param requested `auto`, a format or a chain of them; what is inside of the last container is detected
 * @param head the first bytes of the source, when they are known already
 * @throws UllageError `format-unknown`, `format-unsupported`; SourceError
 */
export async function findImage(
  source: ImageReader,
  requested: string,
  context: OpenContext,
  head?: Uint8Array,
): Promise<OpenedImage | PackedImage> {
  const wanted = parseFormats(requested);
  const chain: ImageFormat[] = [];
  const names = (...more: ImageFormat[]): string => [...chain, ...more].map(({ name }) => name).join("+");
  let reader = source;
  let first = head;
  do {
    if (chain.length === MAX_DEPTH) throw unsupportedImage(chain[0].name, `holds more than ${MAX_DEPTH} others`);
    let format = wanted[chain.length] ?? detectFormat(first ?? (await beginning(reader, context)), reader.size);
    if (wanted.length === 0 && reader === source && format === rawFormat && (await isFixedVhd(source, context))) {
      format = vhdFormat;
    }
    const opened = await format.open(reader, context);
    chain.push(format);
    if (opened === undefined) {
      const inside = wanted.slice(chain.length);
      const next = inside.length > 0 ? inside : [detectFormat(await peek(reader, format, context), Infinity)];
      if (next.some(({ unpacker }) => unpacker !== undefined)) {
        throw unsupportedImage(names(), `is compressed twice`, "unpack it first");
      }
      const inner = next.map(({ name }) => name).join("+");
      return { format: names(...next), outer: names(), packed: reader, unpacker: format.unpacker!, inner };
    }
    reader = opened;
    first = undefined;
  } while (chain.at(-1)!.container);
  return { format: names(), reader };
}

/**
 * The same for an object that can only be fetched as a whole: whatever it is, unless raw, there is no disk before that.
 * @param called what the object is called
 * @param head the first bytes of the source
 */
export function findStreamedImage(
  source: ImageReader,
  requested: string,
  called: string,
  head: Uint8Array,
): OpenedImage | PackedImage {
  const [outer = detectFormat(head, source.size), ...inside] = parseFormats(requested);
  if (outer === rawFormat) {
    if (requested !== "auto" || !isCalledVhd(called)) return { format: "raw", reader: source };
    // Its end, which says whether it is one, comes last.
    return { format: vhdFormat.name, outer: "", packed: source, unpacker: passOn, inner: "auto" };
  }
  const inner = inside.map(({ name }) => name).join("+");
  if (outer.unpacker === undefined) {
    const format = requested === "auto" ? outer.name : requested;
    return { format, outer: "", packed: source, unpacker: passOn, inner: format };
  }
  const format = inner === "" ? outer.name : `${outer.name}+${inner}`;
  const unpacker = outer.unpacker;
  return { format, outer: outer.name, packed: source, unpacker, inner: inner === "" ? "auto" : inner };
}

const passOn = (sink: Sink): Unpacker => ({
  write: async (chunk) => sink(chunk),
  end: () => Promise.resolve(),
  close: () => Promise.resolve(),
});

/** The same for what can be read in ranges. @throws SourceError `image-unsupported` for what can't */
export async function openImage(
  source: ImageReader,
  requested: string,
  context: OpenContext,
  head?: Uint8Array,
): Promise<OpenedImage> {
  const found = await findImage(source, requested, context, head);
  if ("reader" in found) return found;
  throw unsupportedImage(found.format, "can't be read in parts", "make a new volume from it: it is unpacked then");
}

function beginning(reader: ImageReader, { signal }: OpenContext): Promise<Buffer> {
  return readBytes(reader, 0, Math.min(detectHeadBytes, reader.size), signal === undefined ? {} : { signal });
}

/** The first bytes of what is packed; fewer when there are not as many. */
async function peek(packed: ImageReader, format: ImageFormat, { signal }: OpenContext): Promise<Buffer> {
  const parts: Buffer[] = [];
  const unpacked = { bytes: 0 };
  const sink: Sink = (chunk) => {
    if (unpacked.bytes < detectHeadBytes) parts.push(Buffer.from(chunk.subarray(0, detectHeadBytes)));
    unpacked.bytes += chunk.length;
  };
  const unpacker = format.unpacker!(sink);
  try {
    const end = Math.min(packed.size, PEEK_BYTES);
    for (let at = 0; at < end && unpacked.bytes < detectHeadBytes; at += PEEK_STEP_BYTES) {
      const length = Math.min(PEEK_STEP_BYTES, end - at);
      await unpacker.write(await readBytes(packed, at, length, signal === undefined ? {} : { signal }));
    }
    if (unpacked.bytes < detectHeadBytes && end === packed.size) await unpacker.end();
  } finally {
    await unpacker.close();
  }
  return Buffer.concat(parts).subarray(0, detectHeadBytes);
}
