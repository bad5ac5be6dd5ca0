import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtemp, open, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { Ullage } from "../../src/daemon/ullage.ts";
import { requireTool } from "../support/tools.ts";

const run = promisify(execFile);
const block = 4096;
const size = 8 << 20;

interface MapEntry {
  offset: number;
  length: number;
  type: number;
}

void test("nbdinfo, nbdcopy and qemu-img make an incremental backup from what changed between snapshots", async (t) => {
  for (const tool of ["nbdinfo", "nbdcopy", "qemu-img"] as const) if (!requireTool(t, tool)) return;
  const directory = await mkdtemp(join(tmpdir(), "ullage-incremental-"));
  const ullage = await Ullage.open({ dataDir: join(directory, "data") });
  t.after(async () => {
    await ullage.close();
    await rm(directory, { recursive: true });
  });
  const path = join(directory, "nbd.sock");
  await ullage.serveNbd([{ kind: "unix", path }]);
  await ullage.createVolume({ name: "web", size });
  const put = async (at: number, count: number, value: number): Promise<void> => {
    const bytes = IoBuffer.from(Buffer.alloc(count * block, value));
    await (await ullage.getDevice("web")).write(at * block, count * block, bytes, 0);
  };
  const uri = (name: string): string => `nbd+unix:///${name}?socket=${path}`;
  const backup = join(directory, "backup.raw");
  await put(0, 100, 1);
  await put(500, 3, 2);
  await ullage.createSnapshot("web", "monday");
  await run("nbdcopy", ["--allocated", uri("web@monday"), backup]);
  await put(7, 1, 3);
  await put(501, 5, 4);
  await (await ullage.getDevice("web")).trim(50 * block, 10 * block);
  await ullage.createSnapshot("web", "tuesday");
  await put(1000, 1, 5); // belongs to no backup yet

  const context = "qemu:dirty-bitmap:monday";
  const { stdout } = await run("nbdinfo", ["--json", `--map=${context}`, uri("web@tuesday")]);
  const map = JSON.parse(stdout) as MapEntry[];
  const changed = map.filter(({ type }) => type === 1).map(({ offset, length }) => [offset / block, length / block]);
  assert.deepEqual(changed, [
    [7, 1],
    [50, 10],
    [501, 5],
  ]);
  const own = await run("nbdinfo", ["--json", "--map=ullage:diff/monday", uri("web@tuesday")]);
  assert.deepEqual(
    JSON.parse(own.stdout).map(({ type }: MapEntry) => type),
    map.map(({ type }) => type),
  );
  const bitmap = `driver=nbd,server.type=unix,server.path=${path},export=web@tuesday,x-dirty-bitmap=${context}`;
  const seen = await run("qemu-img", ["map", "--output=json", "--image-opts", bitmap]);
  const dirty = (JSON.parse(seen.stdout) as { start: number; length: number; data: boolean }[])
    .filter(({ data }) => !data) // QEMU shows dirty parts as holes
    .map(({ start, length }) => [start / block, length / block]);
  assert.deepEqual(dirty, changed);

  const whole = join(directory, "tuesday.raw");
  await run("nbdcopy", [uri("web@tuesday"), whole]);
  const [now, file] = [await readFile(whole), await open(backup, "r+")];
  for (const { offset, length } of map.filter(({ type }) => type === 1)) {
    await file.write(now.subarray(offset, offset + length), 0, length, offset);
  }
  await file.close();
  assert.ok((await readFile(backup)).equals(now), "the increment makes the backup equal to the snapshot");

  const live = await run("nbdinfo", ["--json", "--map=ullage:diff/tuesday", uri("web")]);
  assert.deepEqual(
    (JSON.parse(live.stdout) as MapEntry[]).filter(({ type }) => type === 1).map(({ offset }) => offset / block),
    [1000],
  );
  const contexts = await run("nbdinfo", [uri("web")]);
  for (const name of ["qemu:dirty-bitmap:monday", "ullage:diff/tuesday"])
    assert.match(contexts.stdout, new RegExp(name));
});
