import assert from "node:assert/strict";
import { readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type BackingMeta, decodeBlobMeta, encodeBlobMeta } from "../../src/blob/blob-meta.ts";
import { decodeRangeMap, encodeRangeMap } from "../../src/blob/range-map-file.ts";

/** Makes the blobs of files in a data directory that nobody uses what older versions would have left: they pinned the device, too. */
export function makeBlobsOlder(dataDir: string): void {
  const blobs = join(dataDir, "blobs");
  for (const id of readdirSync(blobs)) {
    const [metaPath, mapPath, data] = ["meta.json", "map", "data"].map((name) => join(blobs, id, name));
    const meta = decodeBlobMeta(readFileSync(metaPath), metaPath);
    const { backing = [] } = meta;
    const old = { ...meta, ...older(meta), ...(backing.length === 0 ? {} : { backing: backing.map(older) }) };
    const { ino } = statSync(data);
    const map = decodeRangeMap(readFileSync(mapPath), mapPath, meta, ino);
    assert.ok("bits" in map, JSON.stringify(map));
    writeFileSync(metaPath, encodeBlobMeta(old));
    writeFileSync(mapPath, encodeRangeMap(old, ino, map.bits));
  }
  rmSync(join(dataDir, "blobs.json"), { force: true });
}

function older({ url, imageFormat, identity }: BackingMeta): BackingMeta {
  const { dev, ino } = statSync(url);
  const [mtime, ctime] = identity.version.split(":").slice(-2);
  return { url, imageFormat, identity: { ...identity, version: `file:${dev}:${ino}:${mtime}:${ctime}` } };
}
