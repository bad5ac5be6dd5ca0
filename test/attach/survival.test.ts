import assert from "node:assert/strict";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { open } from "node:fs/promises";
import { join } from "node:path";
import test from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { identify } from "../../src/attach/processes.ts";
import type { AttachmentView } from "../../src/attach/state.ts";
import type { VolumeView } from "../../src/daemon/views.ts";
import type { Daemon } from "../cli/support.ts";
import { run, succeed, until } from "../nbd/support.ts";
import { requireTool } from "../support/tools.ts";
import { attachments, attachWorld, devices, failed, stateOf, succeeded } from "./world.ts";

void test("fio --verify sees pauses and no error while the daemon is restarted and killed; the file system is clean afterwards", async (t) => {
  if (!requireTool(t, ...devices, "fio", "e2fsck")) return;
  const { daemon, mount, restart } = await attachWorld(t);
  await daemon.json(["volume", "create", "v", "--size", "128M"]);
  const { helperPid } = await daemon.json<AttachmentView>(["attach", "v", "--mkfs", "ext4", "--mount", mount]);
  const work = [
    "--size=32M",
    "--bs=4k",
    "--rw=randwrite",
    "--ioengine=libaio",
    "--iodepth=8",
    "--direct=1",
    "--fsync=50",
  ];
  const verify = ["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"];
  // Slow enough to be under way in every restart, however long one takes: it makes up for no rest.
  const slowly = ["--thinktime=30ms", "--thinktime_blocks=50"];
  let ended = false;
  const fio = run("fio", ["--name=v", `--directory=${mount}`, ...work, ...verify, ...slowly], 240_000);
  void fio.then(() => (ended = true));
  let present = daemon;
  let restarts = 0;
  for (const signal of ["SIGTERM", "SIGKILL", "SIGTERM", "SIGKILL"] as const) {
    await sleep(1000);
    if (ended) break;
    present = await restart(present, signal);
    restarts++;
  }
  assert.ok(restarts >= 2, "it was restarted while fio ran");
  const { code, stdout, stderr } = await fio;
  assert.equal(code, 0, `${stdout}${stderr}`);
  assert.equal((await stateOf(present, "v")).helperPid, helperPid);
  succeeded(await present.cli(["detach", "v"]));
  const { device } = await present.json<AttachmentView>(["attach", "v"]);
  await succeed("e2fsck", ["-fn", device!]);
  succeeded(await present.cli(["detach", "v"]));
});

void test("what a killed helper or a killed nbdfuse leaves is listed as broken, and detach removes it", async (t) => {
  if (!requireTool(t, ...devices, "e2fsck")) return;
  const { daemon, mount, root } = await attachWorld(t);
  await daemon.json(["volume", "create", "v", "--size", "64M"]);
  for (const victim of ["helper", "nbdfuse"] as const) {
    const view = await daemon.json<AttachmentView>(["attach", "v", "--mkfs", "ext4", "--mount", mount]);
    const status = JSON.parse(readFileSync(join(root, "v", "status.json"), "utf8")) as Record<string, { pid: number }>;
    process.kill(status[victim].pid, "SIGKILL");
    await until(() => identify(view.helperPid!) === undefined, "the helper is gone");
    const broken = await stateOf(daemon, "v");
    assert.equal(broken.state, "broken");
    assert.match(broken.reason!, victim === "helper" ? /helper process is gone/ : /nbdfuse is gone/);
    failed(await daemon.cli(["attach", "v"]), /attached and broken/);
    failed(await daemon.cli(["detach", "v"]), /is detached, but (the helper process|nbdfuse) is gone|is detached, but/);
    assert.deepEqual(await attachments(daemon), []);
    assert.deepEqual(readdirSync(root), []);
    assert.match(succeeded(await daemon.cli(["detach", "v"])), /not attached/);
  }
  const { device } = await daemon.json<AttachmentView>(["attach", "v"]);
  await succeed("e2fsck", ["-fp", device!]);
  succeeded(await daemon.cli(["detach", "v"]));
});

void test("files of processes that have ended, even with their numbers in use again, are no attachment", async (t) => {
  if (!requireTool(t, ...devices)) return;
  const { daemon, root } = await attachWorld(t);
  await daemon.json(["volume", "create", "v", "--size", "8M"]);
  const leave = (): void => {
    mkdirSync(join(root, "v"), { recursive: true });
    const self = { pid: process.pid, startTime: 1 };
    const status = {
      helper: self,
      nbdfuse: self,
      served: true,
      state: "connected",
      reason: "",
      size: 1,
      failures: 7,
      lastFlush: null,
    };
    writeFileSync(join(root, "v", "status.json"), JSON.stringify(status));
    writeFileSync(join(root, "v", "record.json"), JSON.stringify({ name: "v", dataDirectory: "/elsewhere" }));
  };
  leave();
  assert.deepEqual(await attachments(daemon), []);
  assert.match(succeeded(await daemon.cli(["detach", "v"])), /not attached/);
  leave();
  assert.equal((await daemon.json<AttachmentView>(["attach", "v"])).state, "attached");
  succeeded(await daemon.cli(["detach", "v"]));
});

void test("a daemon that stays away longer than --timeout makes requests fail; detach says that something is missing", async (t) => {
  if (!requireTool(t, ...devices)) return;
  const { daemon, restart } = await attachWorld(t);
  await daemon.json(["volume", "create", "v", "--size", "8M"]);
  const { device } = await daemon.json<AttachmentView>(["attach", "v", "--timeout", "1s"]);
  await daemon.stop("SIGKILL");
  const disk = await open(device!, "r+");
  await disk.write(Buffer.alloc(4096, 1), 0, 4096, 0);
  await assert.rejects(disk.sync(), { code: "EIO" });
  await disk.close();
  const { state, reason } = await stateOf(daemon, "v");
  assert.equal(state, "failing");
  assert.match(reason!, /away for more than 1 s/);
  const again = await restart(daemon, "SIGKILL");
  await attachedAgain(again, "v");
  failed(await again.cli(["detach", "v"]), /is detached, but .*requests failed because the daemon was away/);
});

void test("when another disk stands behind the name, or an older state, everything fails instead of being mixed", async (t) => {
  if (!requireTool(t, ...devices)) return;
  const { daemon } = await attachWorld(t);
  await daemon.json(["volume", "create", "v", "--size", "8M"]);
  await daemon.json(["snapshot", "create", "v@one"]);
  const remove = ["volume", "rm", "v", "--force", "--snapshots"];
  const changes: [string[][], string, RegExp][] = [
    [[["volume", "revert", "v@one", "--force"]], "lost", /lineage/],
    [[remove, ["volume", "create", "v", "--size", "8M"]], "failing", /there is no volume/],
  ];
  for (const [change, expected, why] of changes) {
    const { device } = await daemon.json<AttachmentView>(["attach", "v"]);
    await succeed("dd", ["if=/dev/urandom", `of=${device}`, "bs=64k", "count=1", "oflag=direct"]);
    for (const step of change) await daemon.json(step);
    const copy = await run("dd", [`if=${device}`, "of=/dev/null", "bs=64k", "count=1", "iflag=direct"]);
    assert.notEqual(copy.code, 0);
    assert.match(copy.stderr, /Input\/output error/);
    const { state, reason } = await stateOf(daemon, "v");
    assert.equal(state, expected);
    assert.match(reason!, why);
    assert.equal((await daemon.cli(["detach", "v"])).code, 1);
    assert.deepEqual(await attachments(daemon), []);
  }
});

void test("a rename of what is attached leaves it alone, through restarts of the daemon, and nobody takes its place", async (t) => {
  if (!requireTool(t, ...devices)) return;
  const { daemon, restart } = await attachWorld(t);
  await daemon.json(["volume", "create", "v", "--size", "8M"]);
  await daemon.json(["snapshot", "create", "v@s"]);
  await daemon.json(["export", "add", "v", "--nbd", "added", "--read-only"]);
  const names = ["v", "v@s", "added"];
  for (const name of names) {
    const { readOnly } = await daemon.json<AttachmentView>(["attach", name]);
    assert.equal(readOnly, name !== "v");
  }
  const { device } = await stateOf(daemon, "v");
  await succeed("dd", ["if=/dev/zero", `of=${device}`, "bs=64k", "count=1", "oflag=direct"]);
  await daemon.json(["volume", "rename", "v", "w"]);
  await daemon.json(["volume", "create", "v", "--size", "1M"]);
  let present = daemon;
  for (const signal of ["SIGTERM", "SIGKILL"] as const) {
    present = await restart(present, signal);
    await succeed("dd", ["if=/dev/urandom", `of=${device}`, "bs=64k", "count=1", "oflag=direct"]);
    for (const name of names) await attachedAgain(present, name);
  }
  const { volumes } = await present.json<{ volumes: VolumeView[] }>(["volume", "ls"]);
  assert.deepEqual(
    volumes.map(({ name, writtenBytes }) => [name, writtenBytes]),
    [
      ["v", 0],
      ["w", 65_536],
    ],
  );
  for (const name of names) succeeded(await present.cli(["detach", name]));
  failed(await present.cli(["attach", "nothing"]), /there is no volume 'nothing'/);
  failed(await present.cli(["attach", "w@nothing"]), /no snapshot 'nothing'/);
});

void test("the helper and nbdfuse ask the kernel not to make them wait for their own write-back, where they may", async (t) => {
  if (!requireTool(t, ...devices)) return;
  const { daemon, root } = await attachWorld(t);
  await daemon.json(["volume", "create", "v", "--size", "8M"]);
  await daemon.json(["attach", "v"]);
  const status = JSON.parse(readFileSync(join(root, "v", "status.json"), "utf8")) as Record<string, { pid: number }>;
  const capabilities = Number.parseInt(/^CapEff:\s*(\w+)$/m.exec(readFileSync("/proc/self/status", "latin1"))![1], 16);
  const permitted = Math.floor(capabilities / 2 ** 24) % 2 === 1; // CAP_SYS_RESOURCE
  const ioFlusher = permitted ? 0x80000 | 0x100000 : 0; // PF_MEMALLOC_NOIO, PF_LOCAL_THROTTLE
  for (const process of ["helper", "nbdfuse"]) {
    const stat = readFileSync(`/proc/${status[process].pid}/stat`, "latin1");
    const flags = Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[6]);
    assert.equal(flags & (0x80000 | 0x100000), ioFlusher, process);
  }
  succeeded(await daemon.cli(["detach", "v"]));
});

void test("the end of whoever attached it, and signals that ask for an end, leave it alone", async (t) => {
  if (!requireTool(t, ...devices)) return;
  const { daemon, root } = await attachWorld(t);
  await daemon.json(["volume", "create", "v", "--size", "8M"]);
  const { device } = await daemon.json<AttachmentView>(["attach", "v"]);
  const status = JSON.parse(readFileSync(join(root, "v", "status.json"), "utf8")) as Record<string, { pid: number }>;
  for (const signal of ["SIGHUP", "SIGINT", "SIGTERM"] as const) {
    process.kill(status["nbdfuse"].pid, signal);
    process.kill(status["helper"].pid, signal);
  }
  await succeed("dd", ["if=/dev/zero", `of=${device}`, "bs=64k", "count=16", "conv=fsync"]);
  assert.equal((await stateOf(daemon, "v")).state, "attached");
  succeeded(await daemon.cli(["detach", "v"]));
});

async function attachedAgain(daemon: Daemon, name: string): Promise<void> {
  for (let attempt = 0; attempt < 100; attempt++) {
    if ((await stateOf(daemon, name)).state === "attached") return;
    await sleep(50);
  }
  throw new Error(`${name} is not attached again`);
}
