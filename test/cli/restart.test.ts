import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { stat } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";
import { atEnd, temporaryDirectory } from "../daemon/support.ts";
import { requireTool } from "../support/tools.ts";
import { launch, run } from "./support.ts";

const execute = promisify(execFile);
const timeout = 120_000;
const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/**
 * Slow enough to be under way in every restart, however long one takes: it rests after each 64 blocks, and makes up for
 * nothing. Each block once, so that the last reads can tell all of them.
 */
const fioJob = (
  "--name=restart --ioengine=nbd --output-format=json --rw=randwrite --bs=16k --size=64M --iodepth=8 --fsync=64 " +
  "--thinktime=60ms --thinktime_blocks=64 --verify=crc32c --verify_fatal=1 --verify_state_save=0 --randseed=7"
).split(" ");

void test("QEMU writes and verifies across restarts and a kill of the daemon, and sees a pause but no error", async (t) => {
  if (!requireTool(t, "qemu-storage-daemon", "fio", "nbdinfo")) return;
  const directory = await temporaryDirectory(t);
  const [api, nbd, disk] = ["api.sock", "nbd.sock", "disk.sock"].map((name) => join(directory, name));
  const args = ["serve", "--data", join(directory, "data"), "--api", `unix:${api}`, "--nbd", `unix:${nbd}`];
  let daemon = await launch(t, args);
  const made = await run(["volume", "create", "v", "--size", "64M", "--api", `unix:${api}`]);
  assert.equal(made.code, 0, made.stderr);

  // QEMU's block layer as a guest's disk has it, offered to fio.
  const source = `driver=nbd,node-name=v,server.type=unix,server.path=${nbd},export=v,reconnect-delay=100`;
  const qemuExport = "type=nbd,id=export,node-name=v,name=v,writable=on";
  const qemu = spawn(
    "qemu-storage-daemon",
    ["--blockdev", source, "--nbd-server", `addr.type=unix,addr.path=${disk}`, "--export", qemuExport],
    { stdio: ["ignore", "ignore", "pipe"] },
  );
  let qemuErrors = "";
  qemu.stderr.on("data", (chunk: Buffer) => (qemuErrors += chunk.toString()));
  const qemuEnded = new Promise((resolve) => qemu.once("close", resolve));
  atEnd(t, async () => {
    qemu.kill("SIGKILL");
    await qemuEnded;
  });
  while ((await stat(disk).catch(() => undefined)) === undefined) await pause(10);

  let running = true;
  const job = execute("fio", [...fioJob, `--uri=nbd+unix:///v?socket=${disk}`], { timeout, cwd: directory }).finally(
    () => (running = false),
  );
  job.catch(() => undefined); // it is looked at below

  let restarts = 0;
  for (const signal of ["SIGTERM", "SIGKILL", "SIGTERM"] as const) {
    await pause(700);
    if (!running) break;
    await daemon.stop(signal);
    daemon = await launch(t, args);
    restarts++;
  }
  const { stdout } = await job;
  const { jobs } = JSON.parse(stdout.slice(stdout.indexOf("{"))) as {
    jobs: [{ error: number; write: { total_ios: number }; read: { total_ios: number } }];
  };
  assert.equal(jobs[0].error, 0, qemuErrors);
  assert.equal(jobs[0].write.total_ios, 4096);
  assert.equal(jobs[0].read.total_ios, 4096, "every block was read back");
  assert.equal(restarts, 3, "fio was under way in every restart");
});
