import { readFileSync, writeFileSync } from "node:fs";
import { run } from "./support.ts";

/** Packs a file with Debian's zstd, frame by frame, and writes the seek table of the zstd project's seekable format. */
export function packSeekable(raw: string, packed: string, frameBytes: number, checksums = false): void {
  const content = readFileSync(raw);
  const frames: Buffer[] = [];
  const entries: Buffer[] = [];
  for (let at = 0; at < content.length; at += frameBytes) {
    const part = content.subarray(at, at + frameBytes);
    writeFileSync(`${packed}.part`, part);
    run("zstd", "-q", "-f", "-3", `${packed}.part`, "-o", `${packed}.frame`);
    const frame = readFileSync(`${packed}.frame`);
    frames.push(frame);
    const entry = Buffer.alloc(checksums ? 12 : 8);
    entry.writeUInt32LE(frame.length, 0);
    entry.writeUInt32LE(part.length, 4);
    entries.push(entry);
  }
  const table = Buffer.concat(entries);
  const head = Buffer.alloc(8);
  head.writeUInt32LE(0x184d2a5e, 0);
  head.writeUInt32LE(table.length + 9, 4);
  const footer = Buffer.alloc(9);
  footer.writeUInt32LE(frames.length, 0);
  footer[4] = checksums ? 0x80 : 0;
  footer.writeUInt32LE(0x8f92eab1, 5);
  writeFileSync(packed, Buffer.concat([...frames, head, table, footer]));
}
