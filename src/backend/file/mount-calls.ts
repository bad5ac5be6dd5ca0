import { readlink } from "node:fs/promises";
import { dirname, isAbsolute, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { SourceError } from "../../base/errors.ts";
import { listMounts, type Mount } from "../../base/mounts.ts";
import { diskPlaces, otherMountPlaces, otherPlaces } from "../../base/pool-slots.ts";
import { Admission } from "../admission.ts";
import { timedOut } from "../source-errors.ts";

/*
 * Calls into file systems that may never answer: those of an NFS server that is gone, of a program behind FUSE that hangs, of a
 * disk in trouble. A thread in such a call can't be taken back. So each mount has few places, held until the call itself
 * returns, whoever has given up waiting for it, and all mounts together have no more threads than pool-slots.ts says:
 *
 *     answering   calls run, a few at a time; the others wait for their turn
 *     silent      one has been running for longer than its time limit: it is given up, and so is everything that waits behind
 *                 it; what comes is refused at once. As long as there are places, one call is let in after each further time
 *                 limit, to see. The first call that returns, however it ends, makes the mount answering again.
 *
 * Invariant: where no place is free, a mount is silent or a call whose time limit runs is under way, so that nobody who came
 * from the foreground waits for ever. Which mount a path leads to is found out without touching one that others answer for.
 */

/** Local file systems: what they wait for is a device of this host. All others are somebody else's. */
const disks = new Set(
  (
    "ext2 ext3 ext4 xfs btrfs zfs f2fs bcachefs jfs reiserfs tmpfs ramfs rootfs overlay squashfs erofs iso9660 udf vfat " +
    "exfat ntfs3 devtmpfs proc sysfs"
  ).split(" "),
);

/** FAT, and programs behind FUSE, make up a file's inode number when it is looked up, often another one the next time. */
const inodesMadeUp = /^(?:fuse(?:blk|\..*)?|vfat|msdos|exfat)$/;

/** As many links lead from one to the next before the kernel calls it a loop. */
const maxLinks = 40;
/** So long somebody waits for a descriptor to be closed. */
const closeMs = 1000;

export interface CallOptions {
  /** The file it is about, for messages. */
  path: string;
  /** After so long the mount is silent, ms. */
  timeoutMs: number;
  background?: boolean;
  /** Whoever waits goes; a call that is running goes on and keeps its place. */
  signal?: AbortSignal;
}

/** All mounts of a kind. */
class Share {
  readonly admission: Admission;
  readonly #total: number;
  /** Calls that were given up and have not returned. */
  lost = 0;

  constructor({ total, background }: { total: number; background: number }) {
    this.#total = total;
    this.admission = new Admission(total, background);
  }

  get full(): boolean {
    return this.lost >= this.#total;
  }

  lose(path: string): void {
    this.lost++;
    if (this.full) this.admission.rejectWaiting(this.refusal(path));
  }

  refusal(path: string): SourceError {
    const why = `${this.lost} calls into file systems that do not answer take all the threads there are for them`;
    return timedOut(`${path} is not asked for: ${why}`, { hint: "see which file systems of sources hang" });
  }
}

const diskShare = new Share(diskPlaces);
const otherShare = new Share(otherPlaces);
const known = new Map<number, MountCalls>();
let running = 0;

/** Calls that have not returned: while there are any, the process can't end by itself. */
export const callsUnderWay = (): number => running;

export class MountCalls {
  readonly #mount: Mount;
  readonly #share: Share;
  readonly #places: number;
  readonly #admission: Admission;
  #running = 0;
  /** Since when it is silent, and when somebody looked last; performance.now(), ms. */
  #silence: { since: number; lookedAt: number } | undefined;
  /** What is to be closed once it answers. */
  readonly #owed: (() => Promise<void>)[] = [];

  constructor(mount: Mount) {
    const disk = isDisk(mount);
    this.#mount = mount;
    this.#share = disk ? diskShare : otherShare;
    const { total, background } = disk ? diskPlaces : otherMountPlaces;
    this.#places = total;
    this.#admission = new Admission(total, background);
  }

  /** The kernel gives a mount's number to another one when it has gone. */
  isOf({ device, path, type }: Mount): boolean {
    return this.#mount.device === device && this.#mount.path === path && this.#mount.type === type;
  }

  /** Whether files are on a device of this host. */
  get isDisk(): boolean {
    return isDisk(this.#mount);
  }

  /** Whether a file has one inode number as long as it lives, also when the file system is mounted again. */
  get keepsInodes(): boolean {
    return !inodesMadeUp.test(this.#mount.type);
  }

  /** Nothing is under way or owed. */
  get idle(): boolean {
    return this.#running === 0 && this.#owed.length === 0;
  }

  /**
   * Makes a call when there is a place.
   * @param discard takes the result of a call that was given up
   * @throws SourceError `source-timeout` when the mount does not answer; what the call throws; the signal's reason
   */
  run<T>(call: () => Promise<T>, options: CallOptions, discard?: (late: T) => void): Promise<T> {
    const { background = false, signal } = options;
    const refusal = this.#refusal(options);
    if (refusal !== undefined) return Promise.reject(refusal);
    return new Promise((resolve, reject) => {
      const work = (): Promise<void> => this.#watch(call, options, { resolve, reject, discard });
      this.#admission.run(background, signal, () => this.#share.admission.run(background, signal, work)).catch(reject);
    });
  }

  /** Closes something, when the mount answers; nobody has to wait for that for long. */
  async release(close: () => Promise<void>, options: Pick<CallOptions, "path" | "timeoutMs">): Promise<void> {
    let begun = false;
    const closing = this.run(async () => {
      begun = true;
      await close();
    }, options).catch(() => {
      if (!begun) this.#owed.push(close); // of a file that was only read, closing loses nothing
    });
    await Promise.race([closing, sleep(closeMs, undefined, { ref: false })]);
  }

  async #watch<T>(call: () => Promise<T>, options: CallOptions, outcome: Outcome<T>): Promise<void> {
    const { signal, timeoutMs } = options;
    let given = false;
    let lost = false;
    const giveUp = (error: unknown): void => {
      given = true;
      outcome.reject(error);
    };
    const onAbort = (): void => giveUp(signal!.reason);
    signal?.addEventListener("abort", onAbort, { once: true });
    const timer = setTimeout(() => {
      lost = true;
      giveUp(this.#fallSilent(options));
    }, timeoutMs);
    running++;
    this.#running++;
    try {
      const value = await call();
      if (given) outcome.discard?.(value);
      else outcome.resolve(value);
    } catch (error) {
      outcome.reject(error); // says nothing to whoever has gone
    } finally {
      running--;
      this.#running--;
      clearTimeout(timer);
      signal?.removeEventListener("abort", onAbort);
      if (lost) this.#share.lost--;
      this.#answered(options);
    }
  }

  #fallSilent(options: CallOptions): SourceError {
    const now = performance.now();
    this.#silence ??= { since: now - options.timeoutMs, lookedAt: now };
    this.#silence.lookedAt = now;
    const error = this.#silentError(options);
    this.#admission.rejectWaiting(error);
    this.#share.lose(options.path);
    return error;
  }

  #answered(options: CallOptions): void {
    this.#silence = undefined;
    for (const close of this.#owed.splice(0)) void this.release(close, options);
  }

  #refusal(options: CallOptions): SourceError | undefined {
    if (this.#share.full) return this.#share.refusal(options.path);
    if (this.#silence === undefined) return undefined;
    const now = performance.now();
    const mayLook = this.#running < this.#places && now - this.#silence.lookedAt >= options.timeoutMs;
    if (!mayLook) return this.#silentError(options);
    this.#silence.lookedAt = now;
    return undefined;
  }

  #silentError({ path }: CallOptions): SourceError {
    const seconds = Math.round((performance.now() - this.#silence!.since) / 1000);
    const where = `${this.#mount.path} (${this.#mount.type})`;
    return timedOut(`${path} does not answer: ${where} has been silent for ${seconds} s`, {
      hint: `see what is wrong with ${this.#mount.path}; when it answers, reads go on by themselves`,
    });
  }
}

interface Outcome<T> {
  resolve(value: T): void;
  reject(error: unknown): void;
  discard: ((late: T) => void) | undefined;
}

/** The calls into the file system that a path leads to just now. @throws as `MountCalls.run` */
export async function callsFor(path: string, options: CallOptions): Promise<MountCalls> {
  const mounts = listMounts();
  let at = "/";
  let rest = path.split("/");
  for (let links = 0; rest.length > 0;) {
    const [name, ...behind] = rest;
    rest = behind;
    const next = join(at, name);
    const mount = mountAt(mounts, next);
    if (mount === undefined || !isDisk(mount)) return callsOf(mount, mounts);
    if (name === "" || name === "." || name === "..") {
      at = next;
      continue;
    }
    const target = await callsOf(mount, mounts).run(() => linkTarget(next), options);
    if (target === undefined) {
      at = next;
      continue;
    }
    if (++links > maxLinks) break; // whoever opens it is told
    rest = [...target.split("/"), ...rest];
    at = isAbsolute(target) ? "/" : dirname(next);
  }
  return callsOf(mountAt(mounts, at), mounts);
}

const isDisk = ({ type }: Mount): boolean => disks.has(type);

/** Where there is no /proc, all is one. */
const everything: Mount = { id: -1, parent: -1, device: "", path: "/", type: "unknown", source: "", options: [] };

function callsOf(mount: Mount = everything, mounts: readonly Mount[]): MountCalls {
  let calls = known.get(mount.id);
  if (calls?.isOf(mount) === true) return calls;
  for (const [id, old] of known) if (old.idle && !mounts.some((there) => there.id === id)) known.delete(id);
  calls = new MountCalls(mount);
  known.set(mount.id, calls);
  return calls;
}

/** The one whose path is the longest; of several at the same place, the last. */
function mountAt(mounts: readonly Mount[], path: string): Mount | undefined {
  let found: Mount | undefined;
  for (const mount of mounts) {
    const inside = mount.path === "/" || path === mount.path || path.startsWith(`${mount.path}/`);
    if (inside && (found === undefined || mount.path.length >= found.path.length)) found = mount;
  }
  return found;
}

/** @returns undefined when it is no link, or can't be looked at: opening it will say why */
function linkTarget(path: string): Promise<string | undefined> {
  return readlink(path).catch(() => undefined);
}
