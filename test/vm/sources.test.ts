import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { createHash, randomUUID } from "node:crypto";
import { once } from "node:events";
import { createReadStream } from "node:fs";
import { mkdir, readFile, rename, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import { type TestContext, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import type { BlobView, VolumeView } from "../../src/daemon/views.ts";
import { launchDaemon } from "../cli/support.ts";
import { temporaryDirectory } from "../daemon/support.ts";
import { startCeph } from "../sources/ceph.ts";
import { push, startRegistry } from "../sources/registry.ts";
import { s3Put } from "../sources/s3-put.ts";
import { debianImage } from "../support/debian-image.ts";
import { startNbdkit, startQemuNbd } from "../support/nbd-source.ts";
import { Nginx } from "../support/nginx.ts";
import { requireTool } from "../support/tools.ts";
import { bootGuest } from "./guest.ts";

const bootTimeoutMs = 3 * 60_000;
/** Of these machines at a time; the processor emulates them. */
const guestsAtOnce = 2;

const run = async (command: string, ...args: string[]): Promise<string> =>
  (await promisify(execFile)(command, args, { timeout: 120_000 })).stdout;

void test("a Debian guest boots from every kind of source, and what it writes is on its volume and nowhere else", async (t) => {
  const guest = [
    "root",
    "fuse",
    "mmdebstrap",
    "mkfs.ext4",
    "qemu-system-x86_64",
    "nbdfuse",
    "debugfs",
    "e2fsck",
  ] as const;
  const servers = ["nginx", "nbdkit", "qemu-nbd", "docker-registry", "skopeo", "qemu-img", "zstd"] as const;
  if (!requireTool(t, ...guest, ...servers, "ceph-mon", "ceph-mgr", "ceph-osd", "radosgw", "ceph")) return;
  const debian = await debianImage();
  const folder = await temporaryDirectory(t);
  await using ceph = await startCeph();

  const nginx = await Nginx.start(t, ({ port, root }) => `server { listen 127.0.0.1:${port}; root ${root}; }`);
  const [qcow2, packed, small] = ["disk.qcow2", "disk.raw.zst", "small.qcow2"].map((name) => join(nginx.root, name));
  const convert = ["convert", "-f", "raw", "-O", "qcow2"];
  await Promise.all([
    run("qemu-img", ...convert, debian.image, qcow2),
    run("qemu-img", ...convert, "-c", "-o", "compression_type=zstd", debian.image, small),
    run("zstd", "-q", "-1", debian.image, "-o", packed),
  ]);
  await s3Put(ceph, "images");
  await s3Put(ceph, "images", "debian/12.qcow2", await readFile(small));
  const registry = await startRegistry(t, folder, "");
  await mkdir(join(folder, "disk"));
  await rename(small, join(folder, "disk/disk.img"));
  await run("tar", "-C", folder, "-cf", join(folder, "layer.tar"), "disk/disk.img");
  await push(folder, registry.host, [{ bytes: await readFile(join(folder, "layer.tar")), title: "layer.tar" }]);
  const exported = await startQemuNbd(t, "-f", "qcow2", "-r", "-x", "debian", qcow2);
  const kit = await startNbdkit(t, "-r", "file", debian.image);

  const keys = join(folder, "keys");
  await writeFile(keys, `access_key_id = ${ceph.accessKeyId}\nsecret_access_key = ${ceph.secretAccessKey}\n`);
  const config = join(folder, "ullage.toml");
  await writeFile(
    config,
    `[[sources.match]]\nprefix = "s3://images/"\nendpoint = "${ceph.origin}"\ncredentials = "file:${keys}"\n`,
  );
  const daemon = await launchDaemon(t, join(folder, "data"), ["--config", config, "--log-level", "error"]);
  const sources: [name: string, source: string, format: string, ...flags: string[]][] = [
    ["file", debian.image, "raw"],
    ["web", `${nginx.url}/disk.qcow2`, "qcow2"],
    ["packed", `${nginx.url}/disk.raw.zst`, "zstd+raw"],
    ["bucket", "s3://images/debian/12.qcow2", "qcow2"],
    ["registry", `oci://${registry.host}/team/disk:v1`, "tar+qcow2"],
    ["nbd-qemu", exported.uri("debian"), "raw", "--unpinned"],
    ["nbd-nbdkit", kit.uri(), "raw", "--unpinned"],
  ];
  const before = await digests(debian.image, qcow2, packed);
  const waiting = [...sources];
  const boot = async (): Promise<void> => {
    for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) {
      const [name, source, format, ...flags] = next;
      await t.test(`${name}: ${format}`, async (inner) => {
        const made = await daemon.json<VolumeView>(["volume", "create", name, "--from", source, ...flags]);
        const mark = randomUUID();
        const console = await bootGuest(debian, {
          rootDisk: daemon.uri(name),
          consoleFile: join(folder, `${name}.console`),
          mark,
          timeoutMs: bootTimeoutMs,
        });
        assert.match(console, /^BOOT-OK /m, console);
        assert.match(console, /^MARK-WRITTEN/m, console);
        const { state, writtenBytes } = await daemon.json<VolumeView>(["volume", "show", name]);
        assert.equal(state, "ok");
        assert.ok(writtenBytes > 0);
        await mounted(inner, daemon.uri(name), async (disk) => {
          assert.equal(await run("debugfs", "-R", "cat /root/mark", disk), `${mark}\n`);
          await run("e2fsck", "-f", "-n", disk);
        });
        // Whoever looks at the source again finds what was there: the same image, without the mark.
        const second = `${name}-again`;
        const again = await daemon.json<VolumeView>(["volume", "create", second, "--from", source, ...flags]);
        assert.equal(again.size, made.size);
        const { blobs } = await daemon.json<{ blobs: BlobView[] }>(["cache", "ls"]);
        const [image, same] = [name, second].map((each) => blobs.find(({ volumes }) => volumes.includes(each)));
        assert.deepEqual([image?.format, image?.pinned], [format, flags.length === 0]);
        assert.deepEqual([same?.source, same?.identity], [image?.source, image?.identity]);
        await mounted(inner, daemon.uri(second), async (disk) => {
          assert.equal(await run("debugfs", "-R", "cat /etc/hostname", disk), "ullage-guest\n");
          assert.equal(await run("debugfs", "-R", "cat /root/mark", disk), "");
        });
      });
    }
  };
  await Promise.all(Array.from({ length: guestsAtOnce }, boot));
  assert.deepEqual(await digests(debian.image, qcow2, packed), before);
});

async function digests(...files: string[]): Promise<string[]> {
  return Promise.all(
    files.map(async (file) => {
      const hash = createHash("sha256");
      await pipeline(createReadStream(file), hash);
      return hash.digest("hex");
    }),
  );
}

/** An export as a file, for programs that know nothing of NBD. */
async function mounted(t: TestContext, uri: string, use: (file: string) => Promise<void>): Promise<void> {
  const folder = join(await temporaryDirectory(t), "nbd");
  await mkdir(folder);
  const file = join(folder, "disk");
  const child = spawn("nbdfuse", ["-r", file, uri], { stdio: ["ignore", "ignore", "inherit"] });
  const ended = once(child, "exit");
  try {
    for (let n = 0; !(await stat(file).then(Boolean, () => false)); n++) {
      assert.ok(child.exitCode === null && n < 500, `nbdfuse does not come up: exit ${child.exitCode}`);
      await sleep(20);
    }
    await use(file);
  } finally {
    await run("fusermount3", "-u", folder).catch(() => child.kill());
    await ended;
  }
}
