/** An NBD export as a file, through libnbd's FUSE client. */
import { mkdtemp, rmdir, stat } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { run } from "./process.ts";

const mountTimeoutMs = 20_000;
const useTimeoutMs = 30 * 60_000;

export interface MountedDisk {
  file: string;
  unmount(): Promise<void>;
}

export async function mountDisk(folder: string, uri: string): Promise<MountedDisk> {
  const mountPoint = await mkdtemp(join(folder, "mounted-"));
  const file = join(mountPoint, "disk");
  const serving = run("nbdfuse", [file, uri], useTimeoutMs);
  const mounted = untilExists(file);
  await Promise.race([mounted, serving]);
  return {
    file,
    unmount: async () => {
      await run("fusermount3", ["-u", mountPoint]);
      await serving;
      await rmdir(mountPoint);
    },
  };
}

async function untilExists(file: string): Promise<void> {
  const deadline = performance.now() + mountTimeoutMs;
  for (;;) {
    const found = await stat(file).catch(() => undefined);
    if (found !== undefined) return;
    if (performance.now() > deadline) throw new Error(`nbdfuse did not mount ${file} within ${mountTimeoutMs} ms`);
    await sleep(10);
  }
}
