import { execFileSync, spawnSync } from "node:child_process";
import {
  closeSync,
  fstatSync,
  ftruncateSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  rmSync,
  unlinkSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import type { TestContext } from "node:test";
import { sftpServer } from "./tools.ts";

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

const fillerOf = (dir: string): string => join(dir, "filler");

/** Takes all the space that is left but for `spare` bytes. */
export function fillDisk(dir: string, spare = 0): void {
  const fd = openSync(fillerOf(dir), "a");
  for (const bytes of [4096, 512]) {
    try {
      for (;;) writeSync(fd, Buffer.alloc(bytes, 0xff));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENOSPC") throw error;
    }
  }
  const { size } = fstatSync(fd);
  ftruncateSync(fd, size - spare);
  closeSync(fd);
}

/** Gives it back. */
export const freeDisk = (dir: string): void => unlinkSync(fillerOf(dir));

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
  readonly #image: string;
  #device: string;

  /** Makes the file system and mounts it. */
  constructor(t: TestContext, kind: "ext4" | "xfs", bytes: number) {
    this.#device = "";
    const base = outDirectory(t, () => {
      unmount(join(base, kind));
      if (this.#device !== "") spawnSync("losetup", ["--detach", this.#device], { stdio: "ignore", timeout: 60_000 });
    });
    this.dir = join(base, kind);
    mkdirSync(this.dir);
    this.#image = join(base, `${kind}.img`);
    run("truncate", "-s", String(bytes), this.#image);
    run(`mkfs.${kind}`, "-q", this.#image);
    this.#device = run("losetup", "--find", "--show", this.#image).trim();
    this.mount();
  }

  mount(): void {
    run("mount", this.#device, this.dir);
  }

  /** @throws when somebody still uses it */
  unmount(): void {
    run("umount", this.dir);
  }

  /** Takes a copy of the whole, which is not mounted just now. @returns what mounts it over this one, and what that gives to unmount it */
  copy(): () => () => void {
    const copy = `${this.#image}.copy`;
    run("cp", this.#image, copy);
    return () => {
      run("mount", "-o", "loop", copy, this.dir);
      return () => this.unmount();
    };
  }

  /** What is unmounted gets another device number, as disks do when the machine starts again. */
  changeDevice(): void {
    const next = run("losetup", "--find", "--show", this.#image).trim();
    run("losetup", "--detach", this.#device);
    this.#device = next;
  }
}

/** A folder behind sshfs: a FUSE file system that numbers files in the order in which they are looked up, and has whole seconds. */
export class SshfsDisk {
  readonly dir: string;
  readonly #behind: string;
  readonly #command: string;

  /** Mounts it. @param behind the folder as it is */
  constructor(t: TestContext, behind: string) {
    const base = outDirectory(t, () => unmount(this.dir));
    this.dir = join(base, "sshfs");
    this.#behind = behind;
    this.#command = join(base, "no-ssh");
    mkdirSync(this.dir);
    writeFileSync(this.#command, `#!/bin/sh\nexec ${sftpServer}\n`, { mode: 0o755 });
    this.mount();
  }

  mount(): void {
    // Nothing of the other side is remembered.
    const options = `ssh_command=${this.#command},dir_cache=no,attr_timeout=0,entry_timeout=0`;
    run("sshfs", `nobody:${this.#behind}`, this.dir, "-o", options);
  }

  /** @throws when somebody still uses it */
  unmount(): void {
    run("umount", this.dir);
  }
}
