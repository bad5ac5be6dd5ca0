import { createHash } from "node:crypto";
import {
  closeSync,
  fstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { UllageError } from "../base/errors.ts";
import { tryLock } from "../base/posix.ts";
import type { AttachRecord, HelperStatus } from "./state.ts";

/** With more than this a socket's path could become too long for its address. */
const maxNameLength = 64;

/**
 * Where the state of attachments is kept: it must not survive a reboot, and must not lie on a disk that may be ours.
 * `$ULLAGE_ATTACH` overrides it. Made when it is missing.
 * @returns its real path, as the kernel lists mounts
 * @throws UllageError `no-runtime-directory`
 */
export function attachRoot(env: NodeJS.ProcessEnv = process.env): string {
  const path = rootFor(env);
  mkdirSync(path, { recursive: true, mode: 0o700 });
  return realpathSync(path);
}

function rootFor(env: NodeJS.ProcessEnv): string {
  const given = env["ULLAGE_ATTACH"] || undefined;
  if (given !== undefined) return given;
  if (process.getuid?.() === 0) return "/run/ullage-attach";
  const user = env["XDG_RUNTIME_DIR"] || undefined;
  if (user !== undefined) return join(user, "ullage-attach");
  throw new UllageError("no-runtime-directory", "there is no place for the state: XDG_RUNTIME_DIR is not set", {
    hint: "run it as root, or in a login session",
  });
}

/**
 * The directory of one attachment:
 *
 *     record.json .... what was asked for; written by `attach` before anything else happens
 *     status.json .... how the helper is doing; written by the helper
 *     log ............ the helper's and nbdfuse's messages
 *     nbd.sock ....... the helper's NBD server, for the kernel or nbdfuse
 *     fuse/disk ...... nbdfuse: the volume as a file
 *
 * What else belongs to it (devices, mounts, processes) is asked of the kernel each time.
 */
export class Place {
  readonly name: string;
  readonly path: string;

  /** @throws UllageError `attach-name` when it would be a directory elsewhere */
  constructor(root: string, name: string) {
    if (name === "" || name === "." || name === ".." || name.includes("/")) {
      throw new UllageError("attach-name", `'${name}' is no name of a volume`, {
        hint: "`ullage attach` lists what is attached",
      });
    }
    this.name = name;
    this.path = join(root, directoryName(name));
  }

  /** @param entry the name of its directory */
  static at(root: string, entry: string): Place {
    const name = (readJson(join(root, entry, "record.json")) as AttachRecord | undefined)?.name;
    return new Place(root, name ?? entry);
  }

  get socket(): string {
    return join(this.path, "nbd.sock");
  }

  get fuse(): string {
    return join(this.path, "fuse");
  }

  get file(): string {
    return join(this.fuse, "disk");
  }

  /** How devices of the kernel's NBD client are recognised as ours. */
  get backend(): string {
    return `ullage:${this.name} ${this.path}`;
  }

  get log(): string {
    return join(this.path, "log");
  }

  /**
   * Makes the directory and keeps every other `attach` and `detach` of the name out, until `release` or the process ends.
   * @throws UllageError `attach-busy`
   */
  lock(): { release(): void } {
    for (;;) {
      mkdirSync(this.path, { recursive: true, mode: 0o700 });
      const fd = openSync(this.path, "r");
      if (!tryLock(fd)) {
        closeSync(fd);
        throw new UllageError("attach-busy", `another attach or detach of '${this.name}' is under way`, {
          hint: "wait for it to end",
        });
      }
      // Whoever had the lock before may have removed the directory.
      if (statSync(this.path, { throwIfNoEntry: false })?.ino === fstatSync(fd).ino) {
        return { release: () => closeSync(fd) };
      }
      closeSync(fd);
    }
  }

  /** Under the lock: removes what is in it, and nothing is mounted in it. The directory stays, since it is the lock. */
  clear(): void {
    for (const entry of readdirSync(this.path)) rmSync(join(this.path, entry), { recursive: true, force: true });
  }

  /** Under the lock, as its last act. Nothing may be mounted in it any more. */
  remove(): void {
    rmSync(this.path, { recursive: true, force: true });
  }

  readRecord(): AttachRecord | undefined {
    return readJson(join(this.path, "record.json")) as AttachRecord | undefined;
  }

  writeRecord(record: AttachRecord): void {
    writeJson(join(this.path, "record.json"), record);
  }

  readStatus(): HelperStatus | undefined {
    return readJson(join(this.path, "status.json")) as HelperStatus | undefined;
  }

  writeStatus(status: HelperStatus): void {
    writeJson(join(this.path, "status.json"), status);
  }
}

function directoryName(name: string): string {
  if (name.length <= maxNameLength) return name;
  const hash = createHash("sha256").update(name).digest("hex").slice(0, 16);
  return `${name.slice(0, maxNameLength - hash.length - 1)}~${hash}`;
}

function readJson(path: string): unknown {
  try {
    return JSON.parse(readFileSync(path, "utf8")) as unknown;
  } catch {
    return undefined; // not there (yet): files appear complete
  }
}

function writeJson(path: string, value: unknown): void {
  writeFileSync(`${path}.tmp`, `${JSON.stringify(value, undefined, 2)}\n`, { mode: 0o600 });
  renameSync(`${path}.tmp`, path);
}
