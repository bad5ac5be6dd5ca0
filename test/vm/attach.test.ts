import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { temporaryDirectory } from "../daemon/support.ts";
import { debianImage } from "../support/debian-image.ts";
import { requireTool } from "../support/tools.ts";
import { bootGuest, scratchDisk } from "./guest.ts";
import { makeProgramDisk } from "./program-disk.ts";

const timeoutMs = 9 * 60_000;

void test("attach uses the kernel's NBD client: it survives restarts, grows while mounted, tells losses, and nbdfuse stands in", async (t) => {
  if (!requireTool(t, "root", "mmdebstrap", "mkfs.ext4", "qemu-system-x86_64")) return;
  const folder = await temporaryDirectory(t);
  const program = await makeProgramDisk(folder);
  const console = await bootGuest(await debianImage(), {
    disks: [scratchDisk(program)],
    consoleFile: join(folder, "console"),
    script: "vm/attach.sh",
    timeoutMs,
  });
  const steps = [
    "KERNEL-ATTACHED",
    "SURVIVED",
    "GROWN",
    "CLEAN",
    "LOSS-TOLD",
    "HELPER-KILLED",
    "WITHOUT-KERNEL",
    "SCRIPT-OK",
  ];
  for (const step of steps) assert.match(console, new RegExp(`^${step}\\r?$`, "m"), console);
});
