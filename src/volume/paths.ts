import { join } from "node:path";

/** Where a volume's files are: below <data>/volumes/<id>, <data>/layers and <data>/maps. Ids are 32 hex digits. */

export const volumeDir = (dataDir: string, id: string): string => join(dataDir, "volumes", id);
export const layersDir = (dataDir: string): string => join(dataDir, "layers");
export const layerPath = (dataDir: string, id: string): string => join(dataDir, "layers", id);
export const mapsDir = (dataDir: string): string => join(dataDir, "maps");
export const frozenMapPath = (dataDir: string, id: string): string => join(dataDir, "maps", id);
export const mapPath = (dir: string, number: number): string => join(dir, `map.${number}`);
export const logPath = (dir: string, number: number): string => join(dir, `intent.${number}`);
export const poisonPath = (dir: string): string => join(dir, "poison");
/** The second copy of the poison mark, on another file system. */
export const runtimePoisonPath = (runtimeDir: string, id: string): string => join(runtimeDir, `${id}.poison`);
export const snapshotPath = (dir: string, id: string): string => join(dir, `snapshot.${id}.json`);
export const descriptionPath = (dir: string): string => join(dir, "volume.json");

/** The numbers of the files `prefix.<n>` among directory entries, ascending. */
export function numbered(entries: string[], prefix: "map" | "intent"): number[] {
  const pattern = new RegExp(`^${prefix}\\.([1-9][0-9]{0,14})$`);
  return entries
    .map((entry) => pattern.exec(entry))
    .filter((match) => match !== null)
    .map((match) => Number(match[1]))
    .sort((a, b) => a - b);
}
