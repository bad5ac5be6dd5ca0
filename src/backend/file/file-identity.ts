import type { BigIntStats } from "node:fs";
import type { Identity } from "../backend.ts";

/*
 * What pins a file of this host:
 *
 *     file:inode:mtime:ctime           times in ns since 1970
 *     file:mtime:ctime                 where inode numbers do not last (mount-calls.ts)
 *     file:device:inode:mtime:ctime    as older versions wrote it
 *
 * The device is no part of it: a disk, a volume of LVM or btrfs, a server's export has another number after a restart or when
 * it is mounted again. Whether a descriptor and a path are the same file at the same moment, the device does decide.
 */

/** As many last parts of an older version's text count today. */
const parts = 3;

const secondNs = 1_000_000_000n;
/** A file that is written again within the second keeps times that are whole seconds (FAT: within two). */
const settleNs = 2n * secondNs;

/** @param lasting whether the file system keeps a file's inode number */
export function fileVersion({ ino, mtimeNs, ctimeNs }: BigIntStats, lasting: boolean): string {
  return lasting ? `file:${ino}:${mtimeNs}:${ctimeNs}` : `file:${mtimeNs}:${ctimeNs}`;
}

/** Whether what is written to the file from now on gets other times: those of some file systems are whole seconds. */
export function timesTell({ mtimeNs, ctimeNs }: BigIntStats, nowMs: number): boolean {
  if (mtimeNs % secondNs !== 0n || ctimeNs % secondNs !== 0n) return true;
  const last = mtimeNs > ctimeNs ? mtimeNs : ctimeNs;
  return BigInt(nowMs) * 1_000_000n - last >= settleNs;
}

/** Whether both pin the same bytes. What one of them does not say about a file is not compared. */
export function isSameIdentity(one: Identity, other: Identity): boolean {
  return one.size === other.size && isSameVersion(one.version, other.version);
}

/** As people see it, whichever version wrote it. */
export function shownVersion(version: string): string {
  const known = fileParts(version);
  return known === undefined ? version : `file:${known.join(":")}`;
}

function isSameVersion(one: string, other: string): boolean {
  if (one === other) return true;
  const [mine, others] = [fileParts(one), fileParts(other)];
  if (mine === undefined || others === undefined) return false;
  const common = Math.min(mine.length, others.length);
  return mine.slice(-common).join() === others.slice(-common).join();
}

/** @returns undefined when it pins something else */
function fileParts(version: string): string[] | undefined {
  return /^file(:-?\d+){2,4}$/.test(version) ? version.split(":").slice(1).slice(-parts) : undefined;
}
