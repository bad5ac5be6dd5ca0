import assert from "node:assert/strict";
import { spawn, type ChildProcess } from "node:child_process";
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { open } from "node:fs/promises";
import { join } from "node:path";
import test, { type TestContext } from "node:test";
import { kernelNbdLacks } from "../../src/attach/kernel-nbd.ts";
import { identify } from "../../src/attach/processes.ts";
import type { AttachmentView } from "../../src/attach/state.ts";
import { launchDaemon, run as runCommand } from "../cli/support.ts";
import { atEnd, temporaryDirectory } from "../daemon/support.ts";
import { run, succeed, until } from "../nbd/support.ts";
import { requireTool } from "../support/tools.ts";
import { attachments, attachWorld, devices, failed, stateOf, succeeded } from "./world.ts";

void test("a volume becomes a device with a file system, goes away and comes back with its files", async (t) => {
  if (!requireTool(t, ...devices, "e2fsck")) return;
  const { daemon, mount } = await attachWorld(t);
  await daemon.json(["volume", "create", "v", "--size", "64M"]);
  const view = await daemon.json<AttachmentView>(["attach", "v", "--mkfs", "ext4", "--mount", mount]);
  assert.deepEqual(
    { ...view, device: null, helperPid: null, since: "" },
    {
      name: "v",
      exportName: view.exportName,
      state: "attached",
      reason: null,
      via: "fuse",
      device: null,
      file: view.file,
      mounts: [mount],
      size: 64 * 1024 * 1024,
      readOnly: false,
      since: "",
      dataDirectory: daemon.dataDir,
      helperPid: null,
    },
  );
  assert.match(view.device!, /^\/dev\/loop\d+$/);
  assert.deepEqual(await attachments(daemon), [{ ...view, volume: "v" }]);
  assert.match(succeeded(await daemon.cli(["attach"])), /^NAME .*\nv +\/dev\/loop\d+ +fuse +\S+ +64M .* attached$/m);
  writeFileSync(join(mount, "file"), "kept");

  // Asked for again: it is there already. Asked for differently: an error, and nothing changes.
  assert.deepEqual(await daemon.json(["attach", "v", "--mount", mount]), view);
  failed(await daemon.cli(["attach", "v", "--read-only"]), /'v' is already attached read-write/);
  failed(await daemon.cli(["attach", "v", "--mount", "/"]), /would hide the daemon's data/);

  assert.match(succeeded(await daemon.cli(["detach", "v"])), /v is detached/);
  assert.ok(!existsSync(join(mount, "file")));
  assert.deepEqual(await attachments(daemon), []);
  assert.ok(!existsSync(`/sys/class/block/${view.device!.slice(5)}/loop/backing_file`));
  assert.equal(identify(view.helperPid!), undefined);
  assert.match(succeeded(await daemon.cli(["detach", "v"])), /v is not attached/);

  // --mkfs finds a file system of that kind and leaves it alone; another kind is not made over it.
  const plain = await daemon.json<AttachmentView>(["attach", "v"]);
  assert.deepEqual(plain.mounts, []);
  await succeed("e2fsck", ["-fn", plain.device!]);
  failed(await daemon.cli(["attach", "v", "--mkfs", "xfs"]), /has ext4 on it: no xfs is made/);
  await daemon.json(["attach", "v", "--mkfs", "ext4", "--mount", mount]);
  assert.equal(readFileSync(join(mount, "file"), "utf8"), "kept");
  succeeded(await daemon.cli(["detach", "v"]));
});

void test("a busy disk is not taken apart: who uses it is named, and everything goes on", async (t) => {
  if (!requireTool(t, ...devices)) return;
  const { daemon, mount } = await attachWorld(t);
  await daemon.json(["volume", "create", "v", "--size", "64M"]);
  const view = await daemon.json<AttachmentView>(["attach", "v", "--mkfs", "ext4", "--mount", mount]);

  const user = holder(t, mount);
  failed(await daemon.cli(["detach", "v"]), new RegExp(`${mount} is in use by sleep \\(pid ${user.pid}\\)`));
  writeFileSync(join(mount, "file"), "still there");
  assert.deepEqual(await stateOf(daemon, "v"), { ...view, volume: "v" });
  await ends(user);

  const inside = join(mount, "inside");
  mkdirSync(inside);
  await succeed("mount", ["-t", "tmpfs", "tmpfs", inside]);
  const refused = await daemon.cli(["detach", "v"]);
  await succeed("umount", [inside]);
  failed(refused, new RegExp(`in use by the mount at ${inside}`));

  await succeed("umount", [mount]); // by hand: detach finds the rest
  const opened = await open(view.device!, "r");
  const byUs = await daemon.cli(["detach", "v"]);
  await opened.close();
  failed(byUs, new RegExp(`${view.device} is in use by .* \\(pid ${process.pid}\\)`));
  assert.equal((await stateOf(daemon, "v")).state, "attached");
  succeeded(await daemon.cli(["detach", "v"]));
});

void test("a mount that an attached file system only covers is no user of it, and is there again afterwards", async (t) => {
  if (!requireTool(t, ...devices)) return;
  const { daemon, mount } = await attachWorld(t);
  await daemon.json(["volume", "create", "v", "--size", "64M"]);
  const covered = join(mount, "covered");
  mkdirSync(covered);
  await succeed("mount", ["-t", "tmpfs", "-o", "size=64k", "none", covered]);
  atEnd(t, () => succeed("umount", [covered]));
  writeFileSync(join(covered, "file"), "there");
  await daemon.json(["attach", "v", "--mkfs", "ext4", "--mount", mount]);
  assert.ok(!existsSync(covered));
  assert.match(succeeded(await daemon.cli(["detach", "v"])), /v is detached/);
  assert.ok(existsSync(join(covered, "file")));
});

void test("read-only means that nobody on this host writes", async (t) => {
  if (!requireTool(t, ...devices)) return;
  const { daemon, mount } = await attachWorld(t);
  await daemon.json(["volume", "create", "v", "--size", "64M"]);
  await daemon.json(["attach", "v", "--mkfs", "ext4", "--mount", mount]);
  writeFileSync(join(mount, "file"), "read me");
  succeeded(await daemon.cli(["detach", "v"]));
  const view = await daemon.json<AttachmentView>(["attach", "v", "--read-only", "--mount", mount]);
  assert.equal(view.readOnly, true);
  assert.equal(readFileSync(join(mount, "file"), "utf8"), "read me");
  assert.throws(() => writeFileSync(join(mount, "file"), "no"), { code: "EROFS" });
  const { code } = await run("dd", ["if=/dev/zero", `of=${view.device}`, "bs=4k", "count=1", "conv=notrunc"]);
  assert.notEqual(code, 0);
  failed(await daemon.cli(["attach", "v"]), /already attached read-only/);
  succeeded(await daemon.cli(["detach", "v"]));
  const usage = await daemon.cli(["attach", "v", "--read-only", "--mkfs", "ext4"]);
  assert.equal(usage.code, 2);
});

void test("a snapshot is attached beside its volume, read-only, with what was there when it was made", async (t) => {
  if (!requireTool(t, ...devices)) return;
  const { daemon, mount } = await attachWorld(t);
  await daemon.json(["volume", "create", "v", "--size", "64M"]);
  const before = await daemon.json<AttachmentView>(["attach", "v", "--mkfs", "ext4", "--mount", mount]);
  writeFileSync(join(mount, "file"), "before");
  succeeded(await daemon.cli(["detach", "v"]));
  await daemon.json(["snapshot", "create", "v@one"]);
  await daemon.json(["attach", "v", "--mount", mount]);
  writeFileSync(join(mount, "file"), "after");
  const beside = `${mount}-beside`;
  mkdirSync(beside);
  const view = await daemon.json<AttachmentView>(["attach", "v@one", "--mount", beside]);
  assert.deepEqual([view.name, view.readOnly, view.mounts, view.size], ["v@one", true, [beside], before.size]);
  assert.equal(readFileSync(join(beside, "file"), "utf8"), "before");
  assert.equal(readFileSync(join(mount, "file"), "utf8"), "after");
  assert.throws(() => writeFileSync(join(beside, "file"), "no"), { code: "EROFS" });
  failed(await daemon.cli(["attach", "v@two"]), /no .*'?two/);
  succeeded(await daemon.cli(["detach", "v@one"]));
  failed(await daemon.cli(["attach", "v@one", "--mkfs", "ext4"]), /'v@one' is read-only/);
  succeeded(await daemon.cli(["detach", "v"]));
});

void test("a volume that has grown keeps its size while it is attached; the list says what to do", async (t) => {
  if (!requireTool(t, ...devices)) return;
  const { daemon, restart } = await attachWorld(t);
  await daemon.json(["volume", "create", "v", "--size", "8M"]);
  const { device } = await daemon.json<AttachmentView>(["attach", "v"]);
  const resized = succeeded(await daemon.cli(["volume", "resize", "v", "16M"]));
  assert.match(resized, /^v has 16M\n\/dev\/loop\d+ keeps its 8M: detach it and attach it again/);
  failed(
    await daemon.cli(["attach", "v", "--grow"]),
    /through nbdfuse, which can't be told of a size\n +ullage detach v/,
  );
  failed(await daemon.cli(["attach", "nobody", "--grow"]), /'nobody' is not attached/);
  assert.match(succeeded(await daemon.cli(["attach"])), /^v has grown to 16M: detach it and attach it again/m);
  const again = await restart(daemon, "SIGTERM");
  await succeed("dd", ["if=/dev/urandom", `of=${device}`, "bs=1M", "count=8", "oflag=direct", "conv=fsync"]);
  assert.equal((await stateOf(again, "v")).size, 8 * 1024 * 1024);
  succeeded(await again.cli(["detach", "v"]));
  assert.equal((await again.json<AttachmentView>(["attach", "v"])).size, 16 * 1024 * 1024);
  succeeded(await again.cli(["detach", "v"]));
});

void test("a volume that was renamed while it was attached is listed by both names, and is neither attached twice nor mistaken", async (t) => {
  if (!requireTool(t, ...devices)) return;
  const { daemon } = await attachWorld(t);
  await daemon.json(["volume", "create", "v", "--size", "8M"]);
  await daemon.json(["snapshot", "create", "v@s"]);
  for (const name of ["v", "v@s"]) await daemon.json(["attach", name]);
  await daemon.json(["volume", "rename", "v", "w"]);
  await daemon.json(["volume", "create", "v", "--size", "32M"]); // nobody's size but its own
  const listed = succeeded(await daemon.cli(["attach"]));
  assert.match(listed, /^v \(now w\) +\/dev\/loop/m);
  assert.match(listed, /^v@s \(now w@s\) +\/dev\/loop/m);
  assert.doesNotMatch(listed, /grown/);
  const { attachments: views } = await daemon.json<{ attachments: { name: string; volume: string }[] }>(["attach"]);
  assert.deepEqual(
    views.map(({ name, volume }) => [name, volume]),
    [
      ["v", "w"],
      ["v@s", "w@s"],
    ],
  );
  assert.match(succeeded(await daemon.cli(["volume", "resize", "w", "16M"])), /^\/dev\/loop\d+ keeps its 8M/m);
  assert.match(
    succeeded(await daemon.cli(["attach"])),
    /^v \(now w\) has grown to 16M: detach it and attach it again/m,
  );

  failed(await daemon.cli(["attach", "w"]), /'w' is already attached, as 'v'.*\n +ullage detach v,/);
  failed(await daemon.cli(["attach", "w@s"]), /'w@s' is already attached, as 'v@s'/);
  failed(await daemon.cli(["attach", "v"]), /attached as 'v' is another volume.*\n +ullage detach v,/);
  for (const name of ["v", "v@s"]) succeeded(await daemon.cli(["detach", name]));
  assert.equal((await daemon.json<AttachmentView>(["attach", "v"])).size, 32 * 1024 * 1024);
  succeeded(await daemon.cli(["detach", "v"]));
});

void test("asked for the kernel's NBD client by name, it is that or an error with the reason", async (t) => {
  if (!requireTool(t, ...devices)) return;
  const { daemon, root } = await attachWorld(t);
  await daemon.json(["volume", "create", "v", "--size", "8M"]);
  const lacking = await kernelNbdLacks();
  const asked = await daemon.cli(["attach", "v", "--via", "kernel"]);
  if (lacking !== undefined) {
    failed(asked, new RegExp(`the kernel's NBD client can't be used: ${lacking}\\n.*--via`));
    assert.deepEqual(readdirSync(root), [], "nothing was begun");
  } else {
    assert.match(succeeded(asked), /^v is attached: \/dev\/nbd\d+$/m);
    succeeded(await daemon.cli(["detach", "v"]));
  }
  await daemon.json(["attach", "v", "--via", "fuse"]);
  failed(await daemon.cli(["attach", "v", "--via", "kernel"]), /'v' is already attached through fuse/);
  succeeded(await daemon.cli(["detach", "v"]));
});

void test("what can't be attached or mounted is said, with what to do, and nothing stays behind", async (t) => {
  if (!requireTool(t, ...devices)) return;
  const { daemon, mount, root } = await attachWorld(t);
  await daemon.json(["volume", "create", "v", "--size", "8M"]);
  failed(await daemon.cli(["attach", "nobody"]), /there is no volume 'nobody'/);
  failed(await daemon.cli(["attach", "nobody@monday"]), /no .*'nobody(@monday)?'/);
  failed(await daemon.cli(["attach", "v", "--api", "192.0.2.1:7070"]), /192\.0\.2\.1:7070 is not on this machine/);
  failed(
    await daemon.cli(["attach", "v", "--mount", join(mount, "missing")]),
    /nothing can be mounted on .*\n +mkdir -p/,
  );
  failed(await daemon.cli(["attach", "v", "--mount", mount]), /no file system on \/dev\/loop\d+\n.*--mkfs ext4/);
  failed(await daemon.cli(["attach", "v", "--mount", "/proc", "--mkfs", "ext4"]), /already mounted on \/proc/);
  failed(await daemon.cli(["attach", "v", "--mount", daemon.dataDir]), /would hide the daemon's data/);
  const unmade = await daemon.json<AttachmentView>(["attach", "v"]);
  // A partition table with one partition, as fdisk makes it.
  const table = Buffer.alloc(512);
  table.writeUInt8(0x83, 446 + 4);
  table.writeUInt32LE(2048, 446 + 8);
  table.writeUInt32LE(8192, 446 + 12);
  table.writeUInt16LE(0xaa55, 510);
  const disk = await open(unmade.device!, "r+");
  await disk.write(table, 0, 512, 0);
  await disk.close();
  succeeded(await daemon.cli(["detach", "v"]));
  failed(await daemon.cli(["attach", "v", "--mount", mount]), /has a partition table \(dos\), no file system\n/);
  failed(await daemon.cli(["attach", "v", "--mkfs", "ext4"]), /has a dos partition table on it/);
  assert.deepEqual(readdirSync(root), []);
  assert.equal((await daemon.cli(["attach", "v", "--timeout", "soon"])).code, 2);
  await daemon.stop();
  failed(await daemon.cli(["attach", "v"]), /no daemon listens on/);
});

void test("a name that would lead out of the place of attachments is refused, and removes nothing", async (t) => {
  const base = await temporaryDirectory(t);
  const root = join(base, "run");
  mkdirSync(join(root, "kept"), { recursive: true });
  for (const name of ["..", ".", "", "../run", "../../x", "kept/.."]) {
    for (const command of [["detach"], ["attach", "--grow"]]) {
      const args = [...command, "--", name];
      failed(await runCommand(args, { env: { ULLAGE_ATTACH: root } }), /is no name of a volume/);
    }
    assert.deepEqual(readdirSync(base), ["run"], name);
    assert.deepEqual(readdirSync(root), ["kept"], name);
  }
});

void test("partitions are devices of their own; detach unmounts them", async (t) => {
  if (!requireTool(t, ...devices)) return;
  const { daemon, mount } = await attachWorld(t);
  await daemon.json(["volume", "create", "v", "--size", "64M"]);
  const { device } = await daemon.json<AttachmentView>(["attach", "v"]);
  await succeed("addpart", [device!, "1", "2048", "65536"]); // not every kernel reads partition tables
  const partition = `${device}p1`;
  await until(() => existsSync(partition), "the partition is there");
  await succeed("mkfs.ext4", ["-q", partition]);
  await succeed("mount", [partition, mount]);
  assert.deepEqual((await stateOf(daemon, "v")).mounts, [mount]);
  succeeded(await daemon.cli(["detach", "v"]));
  assert.equal(await run("findmnt", [mount]).then(({ code }) => code), 1);
});

void test("a daemon whose data lies on an attached disk is refused, however indirectly (durability rule 28)", async (t) => {
  if (!requireTool(t, ...devices)) return;
  const { daemon, mount } = await attachWorld(t);
  await daemon.json(["volume", "create", "v", "--size", "128M"]);
  await daemon.json(["attach", "v", "--mkfs", "ext4", "--mount", mount]);
  const inner = await launchDaemon(t, join(mount, "data"));
  await inner.json(["volume", "create", "w", "--size", "1M"]);
  failed(await inner.cli(["attach", "w"]), /data directory .* lies on ullage:v, a disk of Ullage's own/);
  await inner.stop();
  succeeded(await daemon.cli(["detach", "v"]));
});

void test("a user who is not root gets a file", async (t) => {
  if (!requireTool(t, ...devices)) return;
  const { daemon, root, asNobody } = await attachWorld(t);
  await daemon.json(["volume", "create", "v", "--size", "8M"]);
  openFuse(t);
  for (const path of [daemon.dataDir, join(daemon.dataDir, "..")]) chmodSync(path, 0o755);
  for (const name of ["api.sock", "nbd.sock"]) chmodSync(join(daemon.dataDir, name), 0o666);
  failed(await asNobody(["attach", "v", "--mount", "/mnt"]), /--mount needs root\n.*becomes a file/);
  const view = JSON.parse(succeeded(await asNobody(["attach", "v", "--json"]))) as AttachmentView;
  assert.equal(view.device, null);
  assert.notEqual(view.file!.indexOf(root), 0);
  const write = ["if=/dev/urandom", `of=${view.file}`, "bs=64k", "count=4", "conv=notrunc,fsync"];
  await succeed("setpriv", ["--reuid=65534", "--regid=65534", "--clear-groups", "dd", ...write]);
  assert.match(succeeded(await asNobody(["attach"])), /^v +\S+\/v\/fuse\/disk +fuse +- +8M/m);
  assert.match(succeeded(await asNobody(["detach", "v"])), /v is detached/);
  assert.ok((await daemon.json<{ writtenBytes: number }>(["volume", "show", "v"])).writtenBytes >= 256 * 1024);
});

/** As every distribution has it; not every container. */
function openFuse(t: TestContext): void {
  const { mode } = statSync("/dev/fuse");
  chmodSync("/dev/fuse", 0o666);
  t.after(() => chmodSync("/dev/fuse", mode & 0o777));
}

/** A process that works in the directory. */
function holder(t: TestContext, directory: string): ChildProcess {
  const child = spawn("sleep", ["600"], { cwd: directory, stdio: "ignore" });
  atEnd(t, async () => child.kill("SIGKILL"));
  return child;
}

async function ends(child: ChildProcess): Promise<void> {
  const gone = new Promise((resolve) => child.once("exit", resolve));
  child.kill("SIGKILL");
  await gone;
}
