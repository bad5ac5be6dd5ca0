import { randomFillSync } from "node:crypto";
import { constants } from "node:fs";
import { copyFile, open, writeFile } from "node:fs/promises";
import { run } from "./process.ts";

const pieceBytes = 4 * 2 ** 20;

/** A file of incompressible bytes, no two blocks alike, on disk when it returns. */
export async function makeImage(path: string, bytes: number): Promise<void> {
  const file = await open(path, "wx");
  try {
    const piece = randomFillSync(Buffer.alloc(pieceBytes));
    for (let offset = 0; offset < bytes; offset += pieceBytes) {
      for (let block = 0; block < pieceBytes; block += 4096) piece.writeDoubleLE(offset + block, block);
      await file.write(piece, 0, Math.min(pieceBytes, bytes - offset), offset);
    }
    await file.datasync();
  } finally {
    await file.close();
  }
}

export async function copyImage(from: string, to: string): Promise<void> {
  await copyFile(from, to, constants.COPYFILE_EXCL);
}

/** Writes back what is dirty, so that no measurement pays for the one before. */
export async function settle(): Promise<void> {
  await run("sync", []);
}

/** Empties the page cache of everybody. @throws Error EACCES when this is not root */
export async function dropPageCache(): Promise<void> {
  await settle();
  await writeFile("/proc/sys/vm/drop_caches", "3");
}
