import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { makeDisk, run } from "../image/support.ts";
import { startHttpSource } from "../support/http-source.ts";
import { requireTool } from "../support/tools.ts";
import { openUllage, temporaryDirectory } from "./support.ts";

/** A program beside this process, which serves it. */
async function client(command: string, ...args: string[]): Promise<string> {
  const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"], timeout: 120_000 });
  let output = "";
  child.stdout.on("data", (chunk: Buffer) => (output += chunk.toString()));
  child.stderr.on("data", (chunk: Buffer) => (output += chunk.toString()));
  const [code] = (await once(child, "close")) as [number | null];
  assert.equal(code, 0, output);
  return output;
}

for (const [name, ...flags] of [
  ["qcow2", "-O", "qcow2"],
  ["qcow2", "-c", "-O", "qcow2", "-o", "compression_type=zstd"],
  ["vmdk", "-O", "vmdk", "-o", "subformat=streamOptimized"],
  ["vhd", "-O", "vpc", "-o", "force_size=on"],
  ["vhdx", "-O", "vhdx"],
  ["tar+qcow2", "-c", "-O", "qcow2"],
]) {
  void test(`a volume from ${name} (${flags.join(" ")}) is the disk that qemu-img sees, from a file and over HTTP, and detaches`, async (t) => {
    if (!requireTool(t, "qemu-img")) return;
    const dir = await temporaryDirectory(t);
    const [raw, image, again] = ["raw", "image", "again"].map((file) => join(dir, file));
    makeDisk(raw, 24 * 1024 * 1024);
    run("qemu-img", "convert", "-f", "raw", ...flags, raw, image);
    const inner = name === "vhd" ? "vpc" : name.replace("tar+", "");
    run("qemu-img", "convert", "-f", inner, "-O", "raw", image, again);
    let path = image;
    if (name.startsWith("tar+")) run("tar", "-C", dir, "-cf", (path = join(dir, "layer.tar")), "image");
    await using source = await startHttpSource({ content: path });
    const ullage = await openUllage(t);
    const socket = join(dir, "nbd.sock");
    await ullage.serveNbd([{ kind: "unix", path: socket }]);
    for (const [volume, from] of [
      ["file", path],
      ["http", source.url],
    ]) {
      const before = source.bytesServed;
      const made = await ullage.createVolume({ name: volume, from: { source: from }, settings: { hydrate: "off" } });
      assert.equal(made.format, name);
      const uri = `nbd+unix:///${volume}?socket=${socket}`;
      await client("qemu-io", "-f", "raw", "-r", "-c", "read 1500k 4k", uri);
      if (volume === "http") assert.ok(source.bytesServed - before < 3 * 1024 * 1024, `${source.bytesServed - before}`);
      assert.match(await client("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, again), /identical/);
      await ullage.steerHydration(volume, { state: "running" });
      while ((await ullage.showVolume(volume)).hydration.state !== "detached") {
        await new Promise((next) => setTimeout(next, 20));
      }
    }
    assert.deepEqual(new Set((await ullage.listVolumes()).map(({ format }) => format)), new Set([name]));
    await source.close();
    rmSync(path);
    assert.match(
      await client("qemu-img", "compare", "-f", "raw", "-F", "raw", `nbd+unix:///http?socket=${socket}`, again),
      /identical/,
    );
  });
}

void test("a mostly empty disk of 1 TiB is detached in a moment, and its cache takes no space", async (t) => {
  if (!requireTool(t, "qemu-img", "qemu-io")) return;
  const dir = await temporaryDirectory(t);
  const image = join(dir, "image");
  run("qemu-img", "create", "-f", "qcow2", image, "1T");
  run("qemu-io", "-c", "write -P 1 600G 64k", "-c", "write -P 2 1023G 64k", image);
  const dataDir = join(dir, "data");
  const ullage = await openUllage(t, { dataDir });
  await ullage.createVolume({ name: "vast", from: { source: image } });
  while ((await ullage.showVolume("vast")).hydration.state !== "detached") {
    await new Promise((next) => setTimeout(next, 20));
  }
  const data = execFileSync("find", [join(dataDir, "blobs"), "-name", "data"], { encoding: "utf8" }).trim();
  assert.ok(statSync(data).blocks * 512 < 2 * 1024 * 1024);
});
