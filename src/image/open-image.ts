import { unsupportedImage, type ImageFormat, type ImageReader, type OpenContext } from "./image-format.ts";
import { detectFormat, detectHeadBytes, parseFormats } from "./detect.ts";
import { readBytes } from "./read-bytes.ts";

/** An image as it was found: which formats lie in each other, and the disk within. */
export interface OpenedImage {
  /** Names, outermost first, joined by `+`: `raw`, `qcow2`, `tar+qcow2`. */
  format: string;
  reader: ImageReader;
}

/** Formats that lie in each other at most. */
const MAX_DEPTH = 4;

/**
 * Opens format in format until there is a disk.
 * @param requested `auto`, a format or a chain of them; what is inside of the last container is detected
 * @param head the first bytes of the source, when they are known already
 * @throws UllageError `format-unknown`, `format-unsupported`; SourceError
 */
export async function openImage(
  source: ImageReader,
  requested: string,
  context: OpenContext,
  head?: Uint8Array,
): Promise<OpenedImage> {
  const wanted = parseFormats(requested);
  const chain: ImageFormat[] = [];
  let reader = source;
  let first = head;
  do {
    if (chain.length === MAX_DEPTH) throw unsupportedImage(chain[0].name, `holds more than ${MAX_DEPTH} others`);
    const format = wanted[chain.length] ?? detectFormat(first ?? (await beginning(reader, context)), reader.size);
    const opened = await format.open(reader, context);
    if (opened === undefined) throw unsupportedImage(format.name, "can't be read in parts");
    reader = opened;
    first = undefined;
    chain.push(format);
  } while (chain.at(-1)!.container);
  return { format: chain.map(({ name }) => name).join("+"), reader };
}

function beginning(reader: ImageReader, { signal }: OpenContext): Promise<Buffer> {
  return readBytes(reader, 0, Math.min(detectHeadBytes, reader.size), signal === undefined ? {} : { signal });
}
