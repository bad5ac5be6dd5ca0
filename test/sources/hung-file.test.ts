import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import type { VolumeView } from "../../src/daemon/views.ts";
import { pattern } from "../backend/support.ts";
import { launchDaemon, type Daemon } from "../cli/support.ts";
import { temporaryDirectory } from "../daemon/support.ts";
import { fuseTools, mountFuseDisk } from "../support/fuse-disk.ts";
import { requireTool } from "../support/tools.ts";

const MiB = 2 ** 20;
const content = pattern(32 * MiB);

const client = async (command: string, ...args: string[]): Promise<string> =>
  (await promisify(execFile)(command, args, { timeout: 120_000 })).stdout;

const readAt = (daemon: Daemon, name: string, offset: number): Promise<string> =>
  client("qemu-io", "-f", "raw", "-r", "-c", `read -P ${content[offset]} ${offset} 1`, daemon.uri(name));

/* With the time limits that everybody has: half a minute passes while clients wait. */

void test(
  "while the file system of a source hangs, all other volumes are served, and it is read again when it answers",
  { timeout: 280_000 },
  async (t) => {
    if (!requireTool(t, ...fuseTools, "qemu-io", "nbdcopy", "fio")) return;
    const directory = await temporaryDirectory(t);
    const [image, other] = ["image", "other"].map((name) => join(directory, name));
    await writeFile(image, content);
    await writeFile(other, content);
    const disk = await mountFuseDisk(t, image);
    const daemon = await launchDaemon(t);
    const create = (name: string, source: string, ...more: string[]) =>
      daemon.cli(["volume", "create", name, "--from", source, "--hydrate", "off", ...more]);
    const state = async (): Promise<string> => (await daemon.json<VolumeView>(["volume", "show", "hung"])).state;
    for (const name of ["hung", "hung2"]) assert.equal((await create(name, disk.path)).code, 0);
    assert.equal((await create("good", other)).code, 0);

    await disk.hang();
    const waiting = Array.from({ length: 24 }, (_, n) => readAt(daemon, n % 2 === 0 ? "hung" : "hung2", (n + 4) * MiB));
    const failing = Promise.allSettled(waiting);
    await sleep(500); // until they hang; if not, the more has to be done meanwhile
    const out = join(directory, "out");
    await client("nbdcopy", daemon.uri("good"), out);
    await client("cmp", out, other);
    const job = "--name=job --ioengine=nbd --rw=randrw --bs=4k --size=32M --io_size=8M --iodepth=16 --fsync=32";
    const verified = "--verify=crc32c --do_verify=1 --verify_state_save=0";
    await client("fio", ...`${job} ${verified}`.split(" "), `--uri=${daemon.uri("good")}`);
    assert.equal((await create("fresh", other)).code, 0);
    assert.equal((await daemon.cli(["snapshot", "create", "good@now"])).code, 0);
    const refused = await create("late", disk.path);
    assert.equal(refused.code, 1);
    assert.match(
      refused.stderr,
      /disk does not answer: .*\/mounted \(fuse.*\) has been silent for \d+ s\n +see what is wrong/,
    );
    for (const outcome of await failing) assert.equal(outcome.status, "rejected");
    assert.equal(await state(), "degraded");
    await client("nbdcopy", daemon.uri("fresh"), out);
    await client("cmp", out, other);

    disk.answer();
    await client("nbdcopy", daemon.uri("hung"), out);
    await client("cmp", out, image);
    assert.equal(await state(), "ok");
    assert.equal((await create("late", disk.path)).code, 0);
  },
);

void test(
  "a daemon stops while a read hangs, lets go of its data, and the next one goes on",
  { timeout: 280_000 },
  async (t) => {
    if (!requireTool(t, ...fuseTools, "qemu-io")) return;
    const directory = await temporaryDirectory(t);
    const image = join(directory, "image");
    await writeFile(image, content);
    const disk = await mountFuseDisk(t, image);
    const data = join(directory, "data");
    const first = await launchDaemon(t, data);
    await first.json(["volume", "create", "hung", "--from", disk.path, "--hydrate", "off"]);
    await client("qemu-io", "-f", "raw", "-c", "write -P 7 1M 64k", first.uri("hung"));
    await disk.hang();
    const reading = assert.rejects(readAt(first, "hung", 8 * MiB));
    await sleep(500); // until it hangs; if not, the stop has less to do
    const { code, stderr } = await first.stop();
    assert.equal(code, 0, stderr);
    assert.match(stderr, /info stopped\n$/);
    await reading;
    const second = await launchDaemon(t, data);
    await client("qemu-io", "-f", "raw", "-r", "-c", "read -P 7 1M 64k", second.uri("hung"));
    disk.answer();
    await readAt(second, "hung", 8 * MiB);
  },
);
