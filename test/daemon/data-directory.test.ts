import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { realFileSystem } from "../../src/base/real-file-system.ts";
import { DataDirectory } from "../../src/daemon/directory/data-directory.ts";
import { flushWarnings, lockWeakness } from "../../src/daemon/directory/mount-point.ts";
import { mountTmpfs } from "../support/mounts.ts";
import { requireTool } from "../support/tools.ts";
import { temporaryDirectory } from "./support.ts";

const open = (path: string, create = true): Promise<DataDirectory> =>
  DataDirectory.open(realFileSystem, path, { command: "test", create });

void test("durability rule 20: a second holder is refused, told who is first, and removing the lock file changes nothing", async (t) => {
  const path = join(await temporaryDirectory(t), "a", "b");
  const first = await open(path);
  const said = JSON.parse(await readFile(join(path, "lock"), "utf8")) as { pid: number };
  assert.equal(said.pid, process.pid);
  await assert.rejects(open(path), {
    code: "data-in-use",
    message: new RegExp(`process ${process.pid} \\(ullage test`),
  });
  for (const locked of [path, join(path, "volumes")]) {
    await assert.rejects(realFileSystem.lockDirectory(locked), { code: "locked" });
  }
  await rm(join(path, "lock"));
  await assert.rejects(open(path), { code: "data-in-use" });
  await first.close();
  await (await open(path)).close();
});

void test("a directory with other things in it is refused and stays as it was", async (t) => {
  const path = await temporaryDirectory(t);
  await writeFile(join(path, "thesis.txt"), "x");
  await assert.rejects(open(path), { code: "data-foreign", message: /it holds thesis\.txt/, hint: /empty or a new/ });
  assert.deepEqual(await readdir(path), ["thesis.txt"]);
  await assert.rejects(open(join(path, "thesis.txt")), { code: "data-foreign", message: /not a directory/ });
});

void test("the root of a fresh file system counts as empty", async (t) => {
  const path = await temporaryDirectory(t);
  await mkdir(join(path, "lost+found"));
  await (await open(path)).close();
});

void test("a missing directory is made for a daemon, and only for one", async (t) => {
  const path = join(await temporaryDirectory(t), "new");
  await assert.rejects(open(path, false), { code: "data-missing" });
  await (await open(path)).close();
  await (await open(path, false)).close();
});

void test("on a file system that is mounted read-only the message says so", async (t) => {
  if (!requireTool(t, "root", "mount")) return;
  const mounted = mountTmpfs(t, 1024 * 1024);
  await (await open(join(mounted, "data"))).close();
  execFileSync("mount", ["-o", "remount,ro", mounted]);
  await assert.rejects(open(join(mounted, "data")), { code: "data-unwritable", message: /mounted read-only/ });
  await assert.rejects(open(join(mounted, "other")), { code: "data-unwritable", hint: /another directory/ });
});

void test("durability rule 33: a file system in memory, a lazy mount and libeatmydata are warned of", async (t) => {
  const codes = (options: string[], type = "ext4", preload?: string): string[] =>
    flushWarnings({ type, path: "/data", options }, preload).map(({ code }) => code);
  assert.deepEqual(codes(["rw", "relatime"]), []);
  assert.deepEqual(codes(["rw", "nobarrier"]), ["flush-meaningless"]);
  assert.deepEqual(codes(["rw", "volatile"], "overlay"), ["flush-meaningless"]);
  assert.deepEqual(codes(["rw"], "ext4", "/usr/lib/libeatmydata.so"), ["flush-meaningless"]);
  if (!requireTool(t, "root", "mount")) return;
  const directory = await open(join(mountTmpfs(t, 1024 * 1024), "data"));
  assert.deepEqual(
    directory.warnings.map(({ code }) => code),
    ["data-in-memory"],
  );
  await directory.close();
});

void test("durability rule 20: file systems whose locks keep no second writer out are known", () => {
  const weak = (type: string): boolean => lockWeakness({ type, path: "/", options: [] }) !== undefined;
  assert.deepEqual(["9p", "virtiofs", "fuse", "fuse.sshfs", "fuseblk", "nfs", "nfs4", "cifs"].filter(weak).length, 8);
  assert.deepEqual(["ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs"].filter(weak), []);
});
