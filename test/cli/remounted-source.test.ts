import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { renameSync, statSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { promisify } from "node:util";
import type { BlobView, ImageView, VolumeView } from "../../src/daemon/views.ts";
import { pattern } from "../backend/support.ts";
import { temporaryDirectory } from "../daemon/support.ts";
import { LoopDisk, SshfsDisk } from "../support/mounts.ts";
import { makeBlobsOlder } from "../support/older-blobs.ts";
import { requireTool, type ToolName } from "../support/tools.ts";
import { launchDaemon, type Daemon } from "./support.ts";

/* A volume of which hardly anything is here: the daemon ends, what its file lies on is mounted again, the next daemon begins. */

const MiB = 2 ** 20;
const content = pattern(16 * MiB);
const long = new Date(2020, 1, 1);
const patience = { timeout: 240_000 };

interface World {
  /** The file. */
  path: string;
  remount(this: void): void;
  replace(this: void): void;
}

interface Kind {
  name: string;
  tools: readonly ToolName[];
  start(this: void, t: TestContext): Promise<World>;
}

const kinds: Kind[] = [
  {
    name: "a disk that has another device number",
    tools: ["loop", "losetup", "mount", "mkfs.ext4"],
    start: (t) => {
      const disk = new LoopDisk(t, "ext4", 96 * MiB);
      const path = join(disk.dir, "disk.raw");
      writeFileSync(path, content);
      const remount = (): void => {
        const { dev } = statSync(path);
        disk.unmount();
        disk.changeDevice();
        disk.mount();
        assert.notEqual(statSync(path).dev, dev);
      };
      const replace = (): void => {
        writeFileSync(`${path}.new`, content);
        renameSync(`${path}.new`, path);
      };
      return Promise.resolve({ path, remount, replace });
    },
  },
  {
    name: "a file system of FUSE that numbers its files otherwise",
    tools: ["fuse", "sshfs", "sftp-server", "fusermount3"],
    start: async (t) => {
      const behind = await temporaryDirectory(t);
      const put = (name: string, date: Date): void => {
        writeFileSync(join(behind, name), content);
        utimesSync(join(behind, name), date, date);
      };
      put("other", long);
      put("disk.raw", long);
      const disk = new SshfsDisk(t, behind);
      const path = join(disk.dir, "disk.raw");
      const first = statSync(path).ino;
      const remount = (): void => {
        const { ino } = statSync(path);
        disk.unmount();
        disk.mount();
        if (ino === first) statSync(join(disk.dir, "other"));
        assert.notEqual(statSync(path).ino, ino);
      };
      return { path, remount, replace: () => put("disk.raw", new Date(long.getTime() + 1000)) };
    },
  },
];

const client = (command: string, ...args: string[]): Promise<unknown> =>
  promisify(execFile)(command, args, { timeout: 120_000 });

const readAt = (daemon: Daemon, name: string, offset: number): Promise<unknown> =>
  client("qemu-io", "-f", "raw", "-r", "-c", `read -P ${content[offset]} ${offset} 1`, daemon.uri(name));

async function isWhole(daemon: Daemon, name: string, directory: string): Promise<void> {
  const [out, reference] = ["out", "reference"].map((each) => join(directory, each));
  writeFileSync(reference, content);
  await client("nbdcopy", daemon.uri(name), out);
  await client("cmp", out, reference);
  assert.equal((await daemon.json<VolumeView>(["volume", "show", name])).state, "ok");
}

for (const { name, tools, start } of kinds) {
  for (const older of [false, true]) {
    const whose = older ? "an older version's volume" : "a volume";
    void test(
      `${whose} goes on after a restart with its file on ${name}, and shares its image with a new one`,
      patience,
      async (t) => {
        if (!requireTool(t, "root", ...tools, "qemu-io", "nbdcopy")) return;
        const directory = await temporaryDirectory(t);
        const data = join(directory, "data");
        const { path, remount, replace } = await start(t);
        const create = (daemon: Daemon, volume: string): Promise<VolumeView> =>
          daemon.json<VolumeView>(["volume", "create", volume, "--from", path, "--hydrate", "off"]);
        const first = await launchDaemon(t, data);
        await create(first, "cold");
        await readAt(first, "cold", 0);
        assert.equal((await first.stop()).code, 0);
        if (older) makeBlobsOlder(data);

        remount();
        const second = await launchDaemon(t, data);
        await readAt(second, "cold", 8 * MiB);
        const { pinned } = await create(second, "shares");
        assert.equal(pinned, true);
        const { images } = await second.json<{ images: ImageView[] }>(["image", "ls"]);
        assert.equal(images.length, 1);
        assert.deepEqual(images[0].volumes, ["cold", "shares"]);
        assert.equal(images[0].blobs.length, 1, "one version of it is here, whoever pinned it");
        const [blob] = images[0].blobs;
        const { blobs } = await second.json<{ blobs: BlobView[] }>(["cache", "ls"]);
        const { dev } = statSync(path);
        for (const { identity } of [images[0], ...blobs])
          assert.doesNotMatch(identity ?? "", new RegExp(`^file:${dev}:`));
        for (const volume of ["cold", "shares"]) await isWhole(second, volume, directory);
        assert.equal((await second.stop()).code, 0);

        remount();
        const third = await launchDaemon(t, data);
        await isWhole(third, "cold", directory);
        assert.deepEqual((await third.json<{ images: ImageView[] }>(["image", "ls"])).images[0].blobs, [blob]);
        assert.equal((await third.stop()).code, 0);
        replace();
        remount();
        const fourth = await launchDaemon(t, data);
        await create(fourth, "new");
        assert.equal((await fourth.json<{ images: ImageView[] }>(["image", "ls"])).images[0].blobs.length, 2);
      },
    );

    void test(
      `${whose} does not go on with a file that was replaced while ${name} was not mounted`,
      patience,
      async (t) => {
        if (!requireTool(t, "root", ...tools, "qemu-io")) return;
        const data = join(await temporaryDirectory(t), "data");
        const { path, remount, replace } = await start(t);
        const first = await launchDaemon(t, data);
        await first.json(["volume", "create", "cold", "--from", path, "--hydrate", "off"]);
        await readAt(first, "cold", 0);
        assert.equal((await first.stop()).code, 0);
        if (older) makeBlobsOlder(data);
        replace();
        remount();
        const second = await launchDaemon(t, data);
        await readAt(second, "cold", 0);
        await assert.rejects(readAt(second, "cold", 12 * MiB));
        const { state, reason } = await second.json<VolumeView>(["volume", "show", "cold"]);
        assert.equal(state, "degraded");
        assert.match(reason ?? "", /has changed: it was file:/);
      },
    );
  }
}
