import { logPath, mapPath, numbered } from "../paths.ts";
import type { VolumeEnvironment } from "../types.ts";

/** Removes the maps and logs that checkpoint `number`, durable and verified, has made needless. */
export async function removeOlderFiles(env: VolumeEnvironment, dir: string, number: number): Promise<void> {
  const entries = await env.fs.readdir(dir);
  for (const old of numbered(entries, "map")) if (old < number) await env.fs.unlink(mapPath(dir, old));
  for (const old of numbered(entries, "intent")) if (old < number) await env.fs.unlink(logPath(dir, old));
}
