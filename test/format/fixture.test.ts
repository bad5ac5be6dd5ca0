import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, readFileSync, readdirSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import type { ExportView } from "../../src/daemon/views.ts";
import { requireTool } from "../support/tools.ts";
import { temporaryDirectory } from "../daemon/support.ts";
import { crc32c } from "./reader-bytes.ts";
import { World } from "./world.ts";

/** Data directories as older versions left them (see make-fixture.ts): every later version opens them. */

const fixtures = join(import.meta.dirname, "fixtures");

interface Disk {
  name: string;
  size: number;
  sha256: string;
}

function sha256(bytes: Buffer): string {
  return createHash("sha256").update(bytes).digest("hex");
}

/** A range map names the inode of its data file: here somebody knows that the copy is complete. */
function adoptInodes(data: string): void {
  for (const id of readdirSync(join(data, "blobs"))) {
    const path = join(data, "blobs", id, "map");
    const map = readFileSync(path);
    map.writeBigUInt64LE(statSync(join(data, "blobs", id, "data"), { bigint: true }).ino, 80);
    map.writeUInt32LE(crc32c(map.subarray(0, -4)), map.length - 4);
    writeFileSync(path, map);
  }
}

/** Names that were added, from version 3 on. */
async function demandExports(world: World, path: string): Promise<void> {
  const names = existsSync(path) ? (JSON.parse(readFileSync(path, "utf8")) as { name: string; of: string }[]) : [];
  const { exports } = (await world.cli("export", "ls")) as { exports: ExportView[] };
  const found = exports.flatMap(({ name, volume, snapshot, description, implicit, readOnly }) => {
    if (implicit) return [];
    assert.ok(readOnly, name);
    return [{ name, of: snapshot === null ? volume : `${volume}@${snapshot}`, description }];
  });
  assert.deepEqual(found, names);
  for (const { name, of } of names) assert.deepEqual(await world.truth(name), await world.truth(of));
}

for (const version of readdirSync(fixtures)) {
  void test(`a data directory of format ${version} holds what it held then: by the document, checked, and served`, async (t) => {
    if (!requireTool(t, "nbdcopy")) return;
    const base = await temporaryDirectory(t);
    execFileSync("tar", ["-xzf", join(fixtures, version, "data.tar.gz"), "-C", base], { timeout: 60_000 });
    const disks = JSON.parse(readFileSync(join(fixtures, version, "disks.json"), "utf8")) as Disk[];
    const data = join(base, "data");
    adoptInodes(data);
    const world = await World.create(t, data);

    for (const { name, size, sha256: expected } of disks) {
      const disk = world.read(name);
      assert.deepEqual([disk.length, sha256(disk)], [size, expected], `${name}, read by the document`);
    }
    await world.check();
    await world.serve();
    for (const { name, size, sha256: expected } of disks) {
      // On the machine that made it, and until its next boot, this is a kill that a client may have lived through.
      const [volume] = name.split("@");
      const { state } = (await world.cli("volume", "show", volume)) as { state: string };
      if (state === "lostUnflushed") await world.cli("volume", "reopen", volume, "--accept-loss");
      const disk = await world.truth(name);
      assert.deepEqual([disk.length, sha256(disk)], [size, expected], `${name}, served`);
    }
    await demandExports(world, join(fixtures, version, "exports.json"));
    await world.stop("SIGTERM");
    assert.ok(!readdirSync(join(data, "blobs")).some((id) => existsSync(join(data, "blobs", id, "map.rejected"))));
  });
}
