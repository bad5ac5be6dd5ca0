import { spawnSync } from "node:child_process";
import type { TestContext } from "node:test";
import { requireTool } from "../support/tools.ts";
import { atEnd, temporaryDirectory } from "./support.ts";

/** Mounts something for the test's duration. @returns where; undefined when it can't be, and the test is skipped by name */
export function mount(t: TestContext, what: string, options: string[]): string | undefined {
  if (!requireTool(t, "root", "mount")) return undefined;
  const dir = temporaryDirectory(t);
  const result = spawnSync("mount", [...options, dir], { encoding: "utf8", timeout: 20_000 });
  if (result.status !== 0) {
    t.skip(`needs to mount ${what}: ${result.stderr.trim()}`);
    return undefined;
  }
  atEnd(t, () => spawnSync("umount", [dir], { timeout: 20_000 }));
  return dir;
}
