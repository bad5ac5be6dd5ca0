import { constants, read as readCallback } from "node:fs";
import { copyFile, type FileHandle, open, readFile, readlink, stat } from "node:fs/promises";
import { SourceError } from "../../base/errors.ts";
import { tellHoles } from "../../base/file-holes.ts";
import { orAborted } from "../../base/or-aborted.ts";
import { preadPassingInPool, readsAhead, seekDataInPool, seekHoleInPool } from "../../base/posix.ts";
import type { Backend, Identity, Probe, ReadOptions, Sink, ZeroTaker } from "../backend.ts";
import { fileVersion, isSameIdentity, timesTell } from "./file-identity.ts";
import { callsFor, type CallOptions, type MountCalls } from "./mount-calls.ts";
import { demandInside, readHead } from "../object-range.ts";
import type { SourcePolicy } from "../source-guard.ts";
import { backendClosed, badAnswer, sourceChanged } from "../source-errors.ts";
import { PinnedZeros } from "../source-zeros.ts";

/** One call to the thread pool reads this much: long enough to be cheap, short enough to let others in between. */
const chunkBytes = 1024 * 1024;
/** A call may take so long, as an answer over a network may. */
const defaultTimeoutMs = 15_000;
/** A clone of many extents takes its time. */
const cloneTimeouts = 10;
/** What is read in one piece of at least so much goes into our cache, and will hardly be read again. */
const passingBytes = 64 * 1024;
/** Holes of a region are looked up in so many turns at most (base/file-holes.ts); what lies behind is read. */
const maxTurns = 8;
/** Buffers kept for the next read, of whatever file. */
const spareBuffers = 8;
const spare: Buffer[] = [];
/** A descriptor is kept so long for the next read; it keeps a removed file's space, so not longer. */
const lingerMs = 1000;

export interface LocalFileOptions {
  timeoutMs?: number;
}

/** A descriptor that reads of one identity share. */
interface Opened {
  file: FileHandle;
  calls: MountCalls;
  /** Of the identity that it was opened for, whether or not it is that. */
  version: string;
  /** Reads that use it, and calls that have not returned. Without any it is closed, unless it is `#kept`: then a while later. */
  users: number;
  timer?: NodeJS.Timeout;
  /** What it was found to be last, or is just being found to be. */
  looked?: Promise<Identity>;
  /** The look that will begin when that one has ended. */
  nextLook?: Promise<Identity> | undefined;
}

/**
 * A local file or block device. Every call into its file system may hang, and goes by way of mount-calls.ts: it is given up
 * after a while, and what it uses (descriptor, buffer) is left to it until it returns. After the last byte of each read both
 * the descriptor and the path must still be what was pinned (durability rule 31; file-identity.ts), so that neither a change in
 * place nor a replaced file goes unnoticed. Reads that follow each other share a descriptor, unless a policy has to judge it; after one
 * that failed it is opened anew. Reads that end at about the same time share a look at what it is.
 * Writes to a block device need not show in its times: only a read-only one counts as pinned.
 */
export class LocalFileBackend implements Backend {
  readonly url: string;
  readonly #path: string;
  readonly #policy: SourcePolicy | undefined;
  readonly #timeoutMs: number;
  readonly #closing = new AbortController();
  /** Large reads leave nothing behind in the page cache, unless that turns out not to work. */
  #passing = true;
  /** For the next read. */
  #kept: Opened | undefined;
  readonly #zeros = new PinnedZeros((identity) => {
    return (offset, length, take, signal) =>
      this.#tell(identity, offset, length, take, this.#how({ signal, background: true }));
  }, this.#closing.signal);

  /** @param path absolute @param policy which files may be read; absent: any @param timeoutMs of a single call */
  constructor(path: string, policy?: SourcePolicy, { timeoutMs = defaultTimeoutMs }: LocalFileOptions = {}) {
    this.url = path;
    this.#path = path;
    this.#policy = policy;
    this.#timeoutMs = timeoutMs;
  }

  async probe(headBytes: number, signal?: AbortSignal): Promise<Probe> {
    const identity = await this.#identifyAnew(this.#how({ ...(signal && { signal }) }));
    return { identity, head: await readHead(this, identity, headBytes, signal), ranges: true };
  }

  async read(identity: Identity, offset: number, length: number, sink: Sink, options: ReadOptions = {}): Promise<void> {
    demandInside(identity, offset, length);
    const how = this.#how(options);
    await this.#withFile(identity, how, async (opened) => {
      const done = await this.#readUpTo(opened, offset, length, sink, how);
      await this.#demandUnchanged(opened, identity, how);
      if (done < length) throw badAnswer(`${this.#path} ends before its ${identity.size} bytes do`);
    });
  }

  /** @returns bytes read; fewer than asked when the file ends before */
  async #readUpTo(opened: Opened, offset: number, length: number, sink: Sink, how: CallOptions): Promise<number> {
    let buffer: Buffer | undefined;
    let reading = false;
    let done = 0;
    try {
      while (done < length) {
        const size = Math.min(chunkBytes, length - done);
        const at = offset + done;
        const work = async (): Promise<number> => {
          buffer ??= spare.pop() ?? Buffer.allocUnsafeSlow(chunkBytes);
          reading = true;
          try {
            return await this.#readInPool(opened.file.fd, buffer, size, at);
          } finally {
            reading = false;
          }
        };
        const bytes = await this.#use(opened, how, work);
        if (bytes === 0) break;
        const drained = sink(buffer!.subarray(0, bytes));
        if (drained !== undefined) await drained;
        done += bytes;
      }
      return done;
    } finally {
      if (buffer !== undefined && !reading && spare.length < spareBuffers) spare.push(buffer);
    }
  }

  async #readInPool(fd: number, buffer: Buffer, length: number, position: number): Promise<number> {
    if (this.#passing && length >= passingBytes) {
      const bytes = await preadPassingInPool(fd, buffer, length, position);
      if (bytes >= 0) return bytes;
      this.#passing = false; // a kernel before 6.14, or a file system that can't
      readsAhead(fd, true);
    }
    return readInPool(fd, buffer, length, position);
  }

  zeroRun(identity: Identity, offset: number, length: number, options?: ReadOptions): Promise<number> {
    return this.#zeros.zeroRun(identity, offset, length, options);
  }

  tellZeros(identity: Identity, offset: number, length: number, take: ZeroTaker, options?: ReadOptions): Promise<void> {
    return this.#zeros.tell(identity, offset, length, take, options);
  }

  /** Between any two steps, reads that wait for the disk have their turn. @returns whether there is something to be told */
  async #tell(identity: Identity, offset: number, length: number, take: ZeroTaker, how: CallOptions): Promise<boolean> {
    let told = false;
    await this.#withFile(identity, how, async (opened) => {
      if (!opened.calls.isDisk) return;
      const { fd } = opened.file;
      const seeks = {
        seekData: (at: number) => this.#use(opened, how, () => seekDataInPool(fd, at)),
        seekHole: (at: number) => this.#use(opened, how, () => seekHoleInPool(fd, at)),
      };
      let turns = 0;
      try {
        await tellHoles(seeks, offset, length, take, () => ++turns <= maxTurns);
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code === "EINVAL") return; // a block device
        throw error;
      }
      await this.#demandUnchanged(opened, identity, how);
      told = turns <= maxTurns;
    });
    return told;
  }

  async cloneTo(identity: Identity, path: string): Promise<boolean> {
    let cloned = false;
    const how = this.#how({});
    await this.#withFile(identity, how, async (opened) => {
      // By the descriptor: what the policy has judged, whatever the path leads to by now.
      const from = `/proc/self/fd/${opened.file.fd}`;
      const clone = (): Promise<boolean> =>
        copyFile(from, path, constants.COPYFILE_EXCL | constants.COPYFILE_FICLONE_FORCE).then(
          () => true,
          () => false, // another file system, one that can't, a block device: it is read instead, and that may fail for a reason
        );
      cloned = await this.#use(opened, { ...how, timeoutMs: how.timeoutMs * cloneTimeouts }, clone);
      if (cloned) await this.#demandUnchanged(opened, identity, how);
    });
    return cloned;
  }

  stream(identity: Identity, sink: Sink, options?: ReadOptions): Promise<void> {
    return this.read(identity, 0, identity.size, sink, options);
  }

  async close(): Promise<void> {
    this.#closing.abort(backendClosed());
    await this.#keep(undefined);
  }

  /** Whoever waits goes when this is closed, too. */
  #how({ signal, background = false }: ReadOptions): CallOptions & { signal: AbortSignal } {
    const closing = this.#closing.signal;
    const stop = signal === undefined ? closing : AbortSignal.any([signal, closing]);
    return { path: this.#path, timeoutMs: this.#timeoutMs, background, signal: stop };
  }

  async #identifyAnew(how: CallOptions): Promise<Identity> {
    const opened = await this.#open("", how);
    opened.users++;
    try {
      return await this.#identify(opened, how);
    } finally {
      await this.#leave(opened);
    }
  }

  /** Runs `work` with the descriptor that reads of this identity share. */
  async #withFile({ version }: Identity, how: CallOptions, work: (opened: Opened) => Promise<void>): Promise<void> {
    this.#closing.signal.throwIfAborted();
    const kept = this.#kept?.version === version ? this.#kept : undefined;
    const opened = kept ?? (await this.#open(version, how));
    clearTimeout(opened.timer);
    opened.users++;
    try {
      // The policy judges what a path leads to now: for each read anew.
      if (kept === undefined && this.#policy === undefined) await this.#keep(opened);
      await work(opened);
    } catch (error) {
      if (this.#kept === opened) this.#kept = undefined;
      throw error;
    } finally {
      await this.#leave(opened);
    }
  }

  /** A call with the descriptor, which stays open until the call itself returns. */
  #use<T>(opened: Opened, how: CallOptions, call: () => Promise<T>): Promise<T> {
    const work = async (): Promise<T> => {
      opened.users++;
      try {
        return await call();
      } finally {
        void this.#leave(opened);
      }
    };
    return this.#own(opened.calls.run(work, how));
  }

  async #leave(opened: Opened): Promise<void> {
    opened.users--;
    if (opened.users > 0) return;
    if (this.#kept === opened) opened.timer = setTimeout(() => void this.#keep(undefined), lingerMs).unref();
    else await this.#release(opened);
  }

  /** Puts it in the place of the one that is kept. */
  async #keep(opened: Opened | undefined): Promise<void> {
    const before = this.#kept;
    this.#kept = opened;
    if (before === undefined || before.users > 0) return;
    clearTimeout(before.timer);
    await this.#release(before);
  }

  #release({ file, calls }: Opened): Promise<void> {
    return calls.release(() => file.close(), { path: this.#path, timeoutMs: this.#timeoutMs });
  }

  async #open(version: string, how: CallOptions): Promise<Opened> {
    this.#closing.signal.throwIfAborted();
    this.#policy?.checkFile(this.#path);
    const calls = await callsFor(this.#path, how);
    const info = await this.#own(calls.run(() => stat(this.#path), how));
    if (!info.isFile() && !info.isBlockDevice()) throw notAFile(this.#path, info.isDirectory());
    // O_NONBLOCK: what became a pipe since the line above must not hang a thread of the pool.
    const flags = constants.O_RDONLY | constants.O_NONBLOCK;
    const discard = (late: FileHandle): void => void calls.release(() => late.close(), how);
    const file = await this.#own(calls.run(() => open(this.#path, flags), how, discard));
    const opened = { file, calls, version, users: 0 };
    try {
      // What was opened, behind all symbolic links.
      if (this.#policy !== undefined) this.#policy.checkFile(await this.#own(readlink(`/proc/self/fd/${file.fd}`)));
      // Pages that were read ahead would be dropped before they are wanted.
      if (this.#passing) readsAhead(file.fd, false);
      return opened;
    } catch (error) {
      await this.#release(opened);
      throw error;
    }
  }

  /** Failures of our own calls become a source's errors; those of the sink stay what they are. */
  async #own<T>(call: Promise<T>): Promise<T> {
    try {
      return await call;
    } catch (error) {
      if (error instanceof Error && "syscall" in error) throw translate(this.#path, error as NodeJS.ErrnoException);
      throw error;
    }
  }

  async #demandUnchanged(opened: Opened, pinned: Identity, how: CallOptions): Promise<void> {
    const now = await orAborted((opened.nextLook ??= this.#lookNext(opened)), how.signal);
    if (isSameIdentity(now, pinned)) return;
    throw sourceChanged(
      `${this.#path} has changed: it was ${pinned.version} with ${pinned.size} bytes, now it is ${now.version} with ${now.size} bytes`,
    );
  }

  /** A look that is under way began before the last byte of whoever asks now was there: it does not count for him. */
  async #lookNext(opened: Opened): Promise<Identity> {
    opened.users++;
    try {
      await opened.looked?.catch(() => undefined); // met by those who wait for it
      opened.nextLook = undefined;
      opened.looked = this.#identify(opened, this.#how({}));
      return await opened.looked;
    } finally {
      void this.#leave(opened);
    }
  }

  /** What the descriptor and the path are now. @throws SourceError when they are not the same file */
  async #identify(found: Opened, how: CallOptions): Promise<Identity> {
    const [opened, named] = await Promise.all([
      this.#use(found, how, () => found.file.stat({ bigint: true })),
      this.#own(found.calls.run(() => stat(this.#path, { bigint: true }), how)),
    ]);
    const isSame = (["dev", "ino", "mtimeNs", "ctimeNs"] as const).every((each) => opened[each] === named[each]);
    if (!isSame) throw sourceChanged(`${this.#path} was replaced while it was read`);
    const version = fileVersion(opened, found.calls.keepsInodes);
    const strong = timesTell(opened, Date.now());
    if (!opened.isBlockDevice()) return { size: Number(opened.size), version, strong };
    const { size, readOnly } = await this.#own(blockDevice(opened.rdev));
    return { size, version, strong: strong && readOnly };
  }
}

/** Size in bytes, and whether nobody can write: from /sys/dev/block, because stat knows neither. */
async function blockDevice(rdev: bigint): Promise<{ size: number; readOnly: boolean }> {
  const major = ((rdev >> 8n) & 0xfffn) | ((rdev >> 32n) & ~0xfffn);
  const minor = (rdev & 0xffn) | ((rdev >> 12n) & ~0xffn);
  const directory = `/sys/dev/block/${major}:${minor}`;
  const [sectors, readOnly] = await Promise.all([
    readFile(`${directory}/size`, "utf8"),
    readFile(`${directory}/ro`, "utf8"),
  ]);
  // The kernel counts in 512-byte sectors whatever the device's own are.
  return { size: Number(sectors) * 512, readOnly: readOnly.trim() === "1" };
}

function readInPool(fd: number, buffer: Buffer, length: number, position: number): Promise<number> {
  return new Promise((resolve, reject) => {
    readCallback(fd, buffer, 0, length, position, (error, bytes) => {
      if (error) reject(error);
      else resolve(bytes);
    });
  });
}

function notAFile(path: string, directory: boolean): SourceError {
  const what = directory ? "a directory" : "neither a file nor a block device";
  return new SourceError("source-not-a-file", `${path} is ${what}`, {
    transient: false,
    hint: directory ? "name the image in it" : "name an image file",
  });
}

function translate(path: string, cause: NodeJS.ErrnoException): SourceError {
  const { code } = cause;
  if (code === "ENOENT" || code === "ENOTDIR" || code === "ENAMETOOLONG" || code === "ELOOP") {
    const what = code === "ELOOP" ? "is a symbolic link in a circle" : "does not exist";
    return new SourceError("source-not-found", `${path} ${what}`, { transient: false, hint: "check the path", cause });
  }
  if (code === "EACCES" || code === "EPERM") {
    const hint = `make it readable for the user that ullage runs as (uid ${process.getuid?.()})`;
    return new SourceError("source-denied", `${path} may not be read`, { transient: false, hint, cause });
  }
  const hint = "see the kernel's log for what is wrong with the disk, or the server, that it is on";
  return new SourceError("source-io", `${path} cannot be read (${code})`, { transient: true, hint, cause });
}
