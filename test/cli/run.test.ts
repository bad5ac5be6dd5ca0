import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, readdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";
import type { VolumeView } from "../../src/daemon/views.ts";
import { temporaryDirectory } from "../daemon/support.ts";
import { startHttpSource } from "../support/http-source.ts";
import { startNbdkit } from "../support/nbd-source.ts";
import { requireTool } from "../support/tools.ts";
import { launch, run } from "./support.ts";

const execute = promisify(execFile);
const timeout = 60_000;

interface Announced {
  uri: string;
  volume: VolumeView;
  dataDirectory: string;
  temporary: boolean;
  warnings: { code: string }[];
}

void test("an HTTP image is a writable disk at once; what was written goes with the temporary directory", async (t) => {
  if (!requireTool(t, "qemu-io")) return;
  await using source = await startHttpSource({ content: Buffer.alloc(2 ** 20, 7) });
  const disk = await launch<Announced>(t, ["run", source.url, "--nbd", "127.0.0.1:0", "--size", "8M"]);
  const { uri, volume, temporary, dataDirectory } = disk.announced;
  assert.match(uri, /^nbd:\/\/127\.0\.0\.1:\d+\/$/);
  assert.deepEqual([volume.name, volume.size, temporary], ["disk", 8 * 2 ** 20, true]);
  const commands = ["-c", "read -P 7 0 1M", "-c", "write -P 9 4M 64k", "-c", "flush", "-c", "read -P 9 4M 64k"];
  const { stdout } = await execute("qemu-io", ["-f", "raw", ...commands, uri], { timeout });
  assert.doesNotMatch(stdout, /Pattern verification failed/);
  assert.ok(existsSync(dataDirectory));
  const { code, stderr } = await disk.stop("SIGINT");
  assert.deepEqual([code, stderr], [0, ""]);
  assert.equal(existsSync(dataDirectory), false);
});

void test("an export of another NBD server is a writable disk at once", async (t) => {
  if (!requireTool(t, "qemu-io", "nbdkit")) return;
  const source = await startNbdkit(t, "pattern", "4M");
  const refused = await run(["run", source.uri(), "--nbd", "127.0.0.1:0"]);
  assert.equal(refused.code === 0, false);
  assert.match(refused.stderr, /--unpinned/);
  const disk = await launch<Announced>(t, ["run", source.uri(), "--unpinned", "--nbd", "127.0.0.1:0"]);
  const commands = ["-c", "read -v 4096 16", "-c", "write -P 9 1M 64k", "-c", "read -P 9 1M 64k"];
  const { stdout } = await execute("qemu-io", ["-f", "raw", ...commands, disk.announced.uri], { timeout });
  assert.match(stdout, /00 00 00 00 00 00 10 00 00 00 00 00 00 00 10 08/);
  assert.doesNotMatch(stdout, /Pattern verification failed/);
  assert.equal((await disk.stop("SIGINT")).code, 0);
});

void test("with --data the same source goes on, and another one is an error", async (t) => {
  if (!requireTool(t, "qemu-io")) return;
  const directory = await temporaryDirectory(t);
  const source = join(directory, "a.raw");
  await writeFile(source, Buffer.alloc(2 ** 20, 1));
  await writeFile(join(directory, "b.raw"), Buffer.alloc(2 ** 20, 2));
  const args = ["--data", join(directory, "data"), "--nbd", `unix:${directory}/nbd.sock`];
  const first = await launch<Announced>(t, ["run", source, ...args]);
  await execute("qemu-io", ["-f", "raw", "-c", "write -P 9 0 64k", "-c", "flush", first.announced.uri], { timeout });
  assert.equal((await first.stop()).code, 0);

  const second = await launch<Announced>(t, ["run", source, ...args]);
  assert.equal(second.announced.volume.id, first.announced.volume.id);
  const { stdout } = await execute("qemu-io", ["-f", "raw", "-c", "read -P 9 0 64k", second.announced.uri], {
    timeout,
  });
  assert.doesNotMatch(stdout, /Pattern verification failed/);
  await second.stop();

  const other = await run(["run", join(directory, "b.raw"), ...args]);
  assert.equal(other.code, 1);
  assert.match(other.stderr, /holds a disk made from .*a\.raw, not from .*b\.raw\n.*another --data/);
  const resized = await run(["run", source, ...args, "--size", "9M"]);
  assert.match(resized.stderr, /has 1048576 bytes, not 9437184/);
});

void test("the default port being taken, a free one is used and said", async (t) => {
  const directory = await temporaryDirectory(t);
  const source = join(directory, "a.raw");
  await writeFile(source, Buffer.alloc(4096));
  const both = [await launch<Announced>(t, ["run", source]), await launch<Announced>(t, ["run", source])];
  const [first, second] = both.map(({ announced }) => announced.uri);
  assert.notEqual(first, second);
  assert.match(second, /^nbd:\/\/127\.0\.0\.1:\d+\/$/);
});

void test("a read-only disk takes no writes", async (t) => {
  if (!requireTool(t, "nbdinfo")) return;
  const directory = await temporaryDirectory(t);
  await writeFile(join(directory, "a.raw"), Buffer.alloc(4096));
  const args = ["run", join(directory, "a.raw"), "--read-only", "--nbd", `unix:${directory}/nbd.sock`];
  const { announced } = await launch<Announced>(t, args);
  await execute("nbdinfo", ["--is", "readonly", announced.uri], { timeout });
});

void test("a format that can't be read is an error unless raw is asked for, and nothing is left behind", async (t) => {
  const directory = await temporaryDirectory(t);
  const source = join(directory, "a.qcow2");
  await writeFile(source, Buffer.concat([Buffer.from("QFI\xfb", "latin1"), Buffer.alloc(4092)]));
  const env = { TMPDIR: join(directory, "tmp") };
  await mkdir(env.TMPDIR);
  const refused = await run(["run", source], { env });
  assert.equal(refused.code, 1);
  assert.match(refused.stderr, /^ullage: the qcow2 image has version 0; 2 and 3 can be read\n.*--format raw/);
  assert.deepEqual(await readdir(env.TMPDIR), []);
  const forced = await launch<Announced>(t, ["run", source, "--format", "raw", "--nbd", "127.0.0.1:0"], { env });
  assert.equal(forced.announced.volume.size, 4096);
  await forced.stop();
  assert.deepEqual(await readdir(env.TMPDIR), []);
});

void test("a data directory with other volumes is not taken for a run's", async (t) => {
  const directory = await temporaryDirectory(t);
  const source = join(directory, "a.raw");
  await writeFile(source, Buffer.alloc(4096));
  const { Ullage } = await import("../../src/daemon/ullage.ts");
  const ullage = await Ullage.open({ dataDir: join(directory, "data") });
  await ullage.createVolume({ name: "mine", size: 4096 });
  await ullage.close();
  const { code, stderr } = await run(["run", source, "--data", join(directory, "data")]);
  assert.equal(code, 1);
  assert.match(stderr, /holds 1 volume, not the disk of one run\n.*ullage serve/);
});

void test("people see where the disk is, what stays, and how far the filling is", async (t) => {
  const directory = await temporaryDirectory(t);
  await writeFile(join(directory, "a.raw"), Buffer.alloc(2 ** 20, 1));
  const { spawn } = await import("node:child_process");
  const ullage = join(import.meta.dirname, "../../bin/ullage");
  const child = spawn("sh", [ullage, "run", "a.raw", "--nbd", `unix:${directory}/n.sock`], { cwd: directory });
  let text = "";
  await new Promise<void>((resolve) => {
    child.stdout.on("data", (chunk: Buffer) => {
      text += chunk.toString();
      if (text.includes("detached")) resolve();
    });
    child.once("exit", () => resolve());
  });
  child.kill("SIGTERM");
  await new Promise((resolve) => child.once("close", resolve));
  assert.match(text, /a\.raw is a writable disk of 1M now:\n {2}nbd\+unix:\/\/\/\?socket=.*n\.sock\n/);
  assert.match(text, /data in .*ullage-run-\w+ \(temporary: it is removed at the end\); Ctrl-C stops\n/);
  assert.match(text, /detached: everything is here/);
  assert.match(text, /stopped; the disk and everything written to it are gone, with .*ullage-run-/);
});
