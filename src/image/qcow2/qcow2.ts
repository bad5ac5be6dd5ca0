import {
  damagedImage,
  unsupportedImage,
  type ImageFormat,
  type ImageReader,
  type OpenContext,
} from "../image-format.ts";
import { MappedReader } from "../mapped-reader.ts";
import { PageCache } from "../page-cache.ts";
import { Qcow2Map } from "./cluster-map.ts";
import { QCOW2_MAGIC, readQcow2Header, type Qcow2Header } from "./header.ts";

/**
 * QEMU's image format, versions 2 and 3 (docs/interop/qcow2.txt of QEMU): clusters in any order, compressed or not, zeros,
 * parts of clusters (extended L2). Internal snapshots are not looked at. A backing file only when the user allows it.
 */
export const qcow2Format: ImageFormat = {
  name: "qcow2",
  container: false,
  detect: (head) => head.length >= 4 && Buffer.from(head).readUInt32BE(0) === QCOW2_MAGIC,
  async open(source, context) {
    const header = await readQcow2Header(source, context);
    const backing = header.backing === undefined ? undefined : await openBacking(header.backing, context);
    return new MappedReader(source, new Qcow2Map(header, new PageCache(source), backing));
  },
};

async function openBacking(
  { name, format }: NonNullable<Qcow2Header["backing"]>,
  context: OpenContext,
): Promise<ImageReader> {
  if (name.includes("\0")) throw damagedImage("qcow2", "the name of its backing file has a NUL in it");
  if (context.openBacking === undefined) {
    const hint = "allow it with --allow-backing, or join them first: qemu-img convert -O qcow2";
    throw unsupportedImage("qcow2", `lies on another file, ${name}`, hint);
  }
  if (format === undefined) {
    // Its first bytes may be what a guest has written: they are not asked.
    const hint = `record it: qemu-img rebase -u -b ${name} -F FORMAT IMAGE`;
    throw unsupportedImage("qcow2", `does not say in which format its backing file ${name} is`, hint);
  }
  return context.openBacking(name, format);
}
