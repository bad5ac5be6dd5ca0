import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { launchDaemon } from "../cli/support.ts";
import { temporaryDirectory } from "../daemon/support.ts";
import { succeed } from "../nbd/support.ts";
import { debianImage } from "../support/debian-image.ts";
import { requireTool } from "../support/tools.ts";
import { bootGuest, scratchDisk } from "./guest.ts";
import { makeProgramDisk } from "./program-disk.ts";

const timeoutMs = 9 * 60_000;
/** Between two restarts: long enough for the guest to write. */
const calmMs = 3_000;
const maxRestarts = 40;

void test("a guest whose disk reconnects writes through restarts and kills of the daemon, and everything is there afterwards", async (t) => {
  if (!requireTool(t, "root", "mmdebstrap", "mkfs.ext4", "e2fsck", "qemu-system-x86_64", "nbdcopy")) return;
  const debian = await debianImage();
  const folder = await temporaryDirectory(t);
  const program = await makeProgramDisk(folder);
  const data = join(folder, "data");
  let daemon = await launchDaemon(t, data);
  await daemon.json(["volume", "create", "disk", "--size", "96M"]);
  const consoleFile = join(folder, "console");
  const network = `file.driver=nbd,file.server.type=unix,file.server.path=${data}/nbd.sock,file.export=disk`;
  const guest = bootGuest(debian, {
    disks: [scratchDisk(program), `driver=raw,${network},file.reconnect-delay=120,if=virtio,cache=none,discard=unmap`],
    consoleFile,
    script: "vm/disk.sh",
    timeoutMs,
  });
  const qemu = { ended: false };
  const console = guest.finally(() => (qemu.ended = true));
  console.catch(() => undefined); // awaited below
  const printed = async (line: string): Promise<boolean> =>
    (await readFile(consoleFile, "utf8").catch(() => "")).includes(line);
  while (!qemu.ended && !(await printed("WRITING"))) await sleep(100);
  let restarts = 0;
  while (!qemu.ended && restarts < maxRestarts && !(await printed("VERIFIED"))) {
    await daemon.stop(restarts % 2 === 0 ? "SIGTERM" : "SIGKILL");
    daemon = await launchDaemon(t, data);
    restarts++;
    await sleep(calmMs);
  }
  const text = await console;
  t.diagnostic(`${restarts} restarts`);
  assert.match(text, /^SCRIPT-OK/m, text);
  assert.ok(restarts >= 3, `${restarts} restarts while it wrote`);

  // The same through another client.
  const copy = join(folder, "copy.raw");
  await succeed("nbdcopy", [daemon.uri("disk"), copy]);
  await succeed("e2fsck", ["-f", "-n", copy]);
  const kept = join(folder, "kept");
  await succeed("debugfs", ["-R", `dump /kept ${kept}`, copy]);
  const sum = createHash("sha256")
    .update(await readFile(kept))
    .digest("hex");
  assert.ok(text.includes(`KEPT-SHA256 ${sum}`), `${sum} is not in ${text}`);
  assert.equal((await daemon.json<{ state: string }>(["volume", "show", "disk"])).state, "ok");
});
