import { execFileSync, spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";
import type { TestContext } from "node:test";

/** Small file systems for tests, below the checkout's test/out. They go with the test that made them. */

const outDir = new URL("../out/", import.meta.url).pathname;

/**
 * A directory on the checkout's own disk.
 * @param leave called before it is removed: unmounts what is mounted there
 */
export function outDirectory(t: TestContext, leave: (dir: string) => void = () => undefined): string {
  mkdirSync(outDir, { recursive: true });
  const dir = mkdtempSync(join(outDir, "mnt-"));
  t.after(() => {
    leave(dir);
    rmSync(dir, { recursive: true, force: true });
  });
  return dir;
}

function run(command: string, ...args: string[]): string {
  return execFileSync(command, args, { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"], timeout: 60_000 });
}

/** At once, or lazily when somebody still uses it. Not an error when nothing is mounted there. */
function unmount(dir: string): void {
  if (spawnSync("umount", [dir], { stdio: "ignore", timeout: 60_000 }).status === 0) return;
  spawnSync("umount", ["--lazy", dir], { stdio: "ignore", timeout: 60_000 });
}

/** A file system in memory. @returns its directory */
export function mountTmpfs(t: TestContext, bytes: number): string {
  const dir = outDirectory(t, unmount);
  run("mount", "-t", "tmpfs", "-o", `size=${bytes}`, "tmpfs", dir);
  return dir;
}

/** An overlay, as a container's root is one. @returns its directory */
export function mountOverlay(t: TestContext): string {
  const base = outDirectory(t, () => unmount(join(base, "merged")));
  for (const name of ["lower", "upper", "work", "merged"]) mkdirSync(join(base, name));
  const options = `lowerdir=${base}/lower,upperdir=${base}/upper,workdir=${base}/work`;
  const dir = join(base, "merged");
  run("mount", "-t", "overlay", "-o", options, "overlay", dir);
  return dir;
}

/** A file system on a loop device over a sparse file. */
export class LoopDisk {
  readonly dir: string;
  readonly #device: string;

  /** Makes the file system and mounts it. */
  constructor(t: TestContext, kind: "ext4" | "xfs", bytes: number) {
    let device: string | undefined;
    const base = outDirectory(t, () => {
      unmount(join(base, kind));
      if (device !== undefined) spawnSync("losetup", ["--detach", device], { stdio: "ignore", timeout: 60_000 });
    });
    this.dir = join(base, kind);
    mkdirSync(this.dir);
    const image = join(base, `${kind}.img`);
    run("truncate", "-s", String(bytes), image);
    run(`mkfs.${kind}`, "-q", image);
    device = run("losetup", "--find", "--show", image).trim();
    this.#device = device;
    this.mount();
  }

  mount(): void {
    run("mount", this.#device, this.dir);
  }

  /** @throws when somebody still uses it */
  unmount(): void {
    run("umount", this.dir);
  }
}
