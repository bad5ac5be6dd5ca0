import assert from "node:assert/strict";
import { execFile, execFileSync } from "node:child_process";
import { closeSync, ftruncateSync, openSync, readFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";
import { pattern } from "../backend/support.ts";
import { startNbdkit, startQemuNbd } from "../support/nbd-source.ts";
import { requireTool } from "../support/tools.ts";
import { openUllage, temporaryDirectory } from "./support.ts";

const execute = promisify(execFile);
const MiB = 1024 * 1024;
const size = 600 * MiB;
const dataAt = [0, 5 * MiB, 300 * MiB, 590 * MiB];

function sparse(path: string): void {
  const file = openSync(path, "w");
  ftruncateSync(file, size);
  for (const at of dataAt) writeSync(file, pattern(MiB, at + 1), 0, MiB, at);
  closeSync(file);
}

void test("a volume from an export is the disk that qemu-img sees there; its holes are not fetched, and when it is detached the server may go", async (t) => {
  if (!requireTool(t, "nbdkit", "qemu-nbd", "qemu-img")) return;
  const directory = await temporaryDirectory(t);
  const [raw, qcow2, stats, socket] = ["raw", "qcow2", "stats", "nbd.sock"].map((name) => join(directory, name));
  sparse(raw);
  execFileSync("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", raw, qcow2]);
  const kit = await startNbdkit(t, "-r", "--filter=stats", "file", raw, `statsfile=${stats}`);
  const qemu = await startQemuNbd(t, "-f", "qcow2", "-r", "-x", "disk", qcow2);
  const ullage = await openUllage(t);
  await ullage.serveNbd([{ kind: "unix", path: socket }]);
  for (const [name, source, server] of [
    ["kit", kit.uri(), kit],
    ["qemu", qemu.uri("disk"), qemu],
  ] as const) {
    const unpinned = { name, from: { source } };
    await assert.rejects(ullage.createVolume(unpinned), { code: "source-unpinned" });
    const made = await ullage.createVolume({ ...unpinned, from: { source, unpinned: true } });
    assert.equal(made.size, size);
    const blobs = await ullage.listBlobs();
    assert.deepEqual(
      blobs.filter(({ volumes }) => volumes.includes(name)).map(({ pinned }) => pinned),
      [false],
    );
    for (let tries = 0; (await ullage.showVolume(name)).hydration.state !== "detached"; tries++) {
      assert.ok(tries < 3000, "it does not get detached");
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    const [blob] = (await ullage.listBlobs()).filter(({ volumes }) => volumes.includes(name));
    assert.ok(blob.foregroundBytes + blob.readaheadBytes + blob.backgroundBytes < 16 * MiB, JSON.stringify(blob));
    if (server === qemu) await server.kill();
    const uri = `nbd+unix:///${name}?socket=${socket}`;
    const { stdout } = await execute("qemu-img", ["compare", "-f", "raw", "-F", "raw", uri, raw], { timeout: 120_000 });
    assert.match(stdout, /identical/);
  }
  // What the server itself has counted, and tells at its end: the data, the samples of each connection, and little around.
  await ullage.close();
  await kit.kill("SIGTERM");
  const [, amount] = /^read: .*?([\d.]+) MiB/m.exec(readFileSync(stats, "utf8")) ?? [];
  assert.ok(Number(amount) >= 4 && Number(amount) < 12, `${amount} MiB`);
});
