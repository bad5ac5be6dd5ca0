import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";
import { launch, run } from "../cli/support.ts";
import { temporaryDirectory } from "../daemon/support.ts";
import { packSeekable } from "../image/seekable.ts";
import { debianImage } from "../support/debian-image.ts";
import { startHttpSource } from "../support/http-source.ts";
import { requireTool } from "../support/tools.ts";

/*
 * A Debian as mmdebstrap and mkfs make it, 1 GiB, in every format in which such images are handed out. As a volume it must be,
 * byte by byte, what qemu-img reads from the image itself, or, where that can't read it, the disk that was packed.
 */

const timeoutMs = 5 * 60_000;
const execute = (command: string, ...args: string[]): Promise<unknown> =>
  promisify(execFile)(command, args, { timeout: timeoutMs });

interface Case {
  /** As the volume shows it. */
  format: string;
  /** Of the image, for qemu-img; absent: it can't read it. */
  qemu?: string;
  http?: boolean;
  /** Makes `image` of `disk` in the folder. */
  make: (disk: string, image: string, folder: string) => Promise<unknown>;
}

const convert =
  (...flags: string[]): Case["make"] =>
  (disk, image) =>
    execute("qemu-img", "convert", "-f", "raw", ...flags, disk, image);
const shell =
  (command: string): Case["make"] =>
  (disk, image) =>
    execute("sh", "-c", command, "sh", disk, image);

const cases: Case[] = [
  { format: "qcow2", qemu: "qcow2", make: convert("-O", "qcow2") },
  { format: "qcow2", qemu: "qcow2", make: convert("-c", "-O", "qcow2", "-o", "compression_type=zlib") },
  { format: "qcow2", qemu: "qcow2", http: true, make: convert("-c", "-O", "qcow2", "-o", "compression_type=zstd") },
  { format: "vmdk", qemu: "vmdk", http: true, make: convert("-O", "vmdk", "-o", "subformat=streamOptimized") },
  { format: "vhd", qemu: "vpc", make: convert("-O", "vpc", "-o", "subformat=dynamic,force_size=on") },
  { format: "vhdx", qemu: "vhdx", make: convert("-O", "vhdx") },
  {
    format: "tar+qcow2",
    http: true,
    async make(disk, image, folder) {
      await mkdir(join(folder, "layer", "disk"), { recursive: true });
      await convert("-c", "-O", "qcow2")(disk, join(folder, "layer", "disk", "debian.qcow2"), folder);
      await execute("tar", "-C", join(folder, "layer"), "--owner=107", "--group=107", "-cf", image, "disk");
      await rm(join(folder, "layer"), { recursive: true });
    },
  },
  {
    format: "zstd+raw",
    http: true,
    make: (disk, image) => Promise.resolve(packSeekable(disk, image, 8 * 2 ** 20)),
  },
  { format: "xz+raw", http: true, make: shell('xz -0 -T2 --block-size=8MiB -c "$1" > "$2"') },
  { format: "gzip+raw", make: shell('gzip -1 -c "$1" > "$2"') },
  { format: "zstd+raw", make: shell('zstd -q -1 "$1" -o "$2"') },
];

for (const [n, { format, qemu, http = false, make }] of cases.entries()) {
  void test(
    `a Debian in ${format} (${n + 1} of ${cases.length}), from ${http ? "a web server" : "a file"}, is the disk that was packed`,
    { timeout: timeoutMs },
    async (t) => {
      if (!requireTool(t, "root", "mmdebstrap", "mkfs.ext4", "qemu-img", "xz", "zstd", "e2fsck")) return;
      const { image: disk } = await debianImage();
      const folder = await temporaryDirectory(t);
      const [image, data, socket, back] = ["image", "data", "nbd.sock", "back"].map((name) => join(folder, name));
      await make(disk, image, folder);
      await using web = http ? await startHttpSource({ content: image }) : undefined;
      const server = await launch(t, ["serve", "--data", data, "--nbd", `unix:${socket}`]);
      const api = { env: { ULLAGE_API: `unix:${data}/api.sock` } };
      const from = web?.url ?? image;
      const made = await run(["volume", "create", "debian", "--from", from, "--json"], api);
      assert.equal(made.code, 0, made.stderr);
      assert.equal((JSON.parse(made.stdout) as { format: string }).format, format);
      const uri = `nbd+unix:///debian?socket=${socket}`;
      await execute("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, disk);
      if (qemu !== undefined) await execute("qemu-img", "compare", "-f", "raw", "-F", qemu, uri, image);
      await execute("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, back);
      await execute("e2fsck", "-f", "-n", back);
      assert.equal((await server.stop()).code, 0);
    },
  );
}
