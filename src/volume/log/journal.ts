import { allOf } from "../../base/all-of.ts";
import { CounterWait } from "../../base/counter-wait.ts";
import { describeError, IoError } from "../../base/errors.ts";
import type { File } from "../../base/file-system.ts";
import { discardLog, IntentLog } from "./intent-log.ts";
import type { Layer } from "../layers/layer.ts";
import type { VolumeLimits } from "../limits.ts";
import { RecordType } from "./log-record.ts";
import { type Checkpoint, writeMapFile } from "../map/map-file.ts";
import type { OwnerMap } from "../map/owner-map.ts";
import type { OwnerTable } from "../map/owner-table.ts";
import { removeOlderFiles } from "./old-files.ts";
import { logPath, numbered } from "../paths.ts";
import type { VolumeEnvironment } from "../types.ts";

/*
 * The journal makes acknowledged operations durable: flush rounds (group commit) and checkpoints.
 *
 * One round at a time. A flush joins the next round, never the running one, so that a round that starts after an
 * operation was answered covers it:
 *
 *     cut = last LSN -> sync every written layer -> commit record with that cut -> sync the log -> answer
 *
 * A checkpoint begins as a round: in the turn that takes the cut, the log is ended and its successor (created and synced
 * before) takes over, and the map is frozen; nothing commits in the successor before layers and old log are synced. The
 * frozen map is then written beside further rounds; old files go when it is durable and was read back (rule 10).
 *
 * A volume that was closed clean and opened again is still what its checkpoint says. The log of such a life is removed at
 * the end if it has no record, so that looking at a volume costs no checkpoint (`#untouched`).
 *
 * The first failed sync poisons: the running and all waiting rounds fail, and every later one (rule 6).
 */

export interface JournalHost {
  /** All that may have been written since the last commit: the head, and heads that became sealed since then. */
  layers(): Iterable<Layer>;
  /** The map as of this turn, and what a checkpoint says besides; `number`, `cut` and `clean` are the journal's. */
  freeze(): { map: OwnerMap; table: OwnerTable; checkpoint: Omit<Checkpoint, "number" | "cut" | "clean"> };
  /** Resolves when everything is durable that only the older map and logs could rebuild. */
  olderFilesMayGo(): Promise<void>;
  /** A checkpoint that mentions none of these layers has replaced map and logs. */
  ownersUnused(owners: number[]): void;
  /** A sync failed. Called once; resolves, whatever happens, when the fact is written down. */
  poison(error: Error): Promise<void>;
}

/** A round that could not finish, though nothing is lost: the disk is full. It may succeed later. */
class RoundFailure extends Error {}

interface Rotation {
  next: IntentLog;
  frozen: ReturnType<JournalHost["freeze"]> | undefined;
  cut: number;
}

export class Journal {
  readonly #env: VolumeEnvironment;
  readonly #dir: string;
  readonly #volumeId: string;
  readonly #limits: VolumeLimits;
  readonly #host: JournalHost;
  /** The head may hold data that nobody owns; the next log will say so. */
  strays: boolean;
  readonly #rounds = new CounterWait();
  #log: IntentLog;
  /** Logs before the current one whose records no checkpoint holds yet; the first round syncs them. */
  #predecessors: File[];
  /** Earlier logs whose descriptors are still open. */
  readonly #retired: File[];
  /** Bytes of records in logs before the current one. */
  #earlierBytes: number;
  /** LSN of the last record that a commit must cover. */
  #lastRecord: number;
  #committedCut: number;
  #started = 0;
  #wanted = 0;
  #running: Promise<void> | undefined;
  #rotation: Rotation | undefined;
  #checkpointing: Promise<void> | undefined;
  #checkpointFailedAt = -Infinity;
  #mapBytes: number;
  /** The last life ended clean, and nothing has been logged since: without this life's log everything is as it was. */
  #untouched: boolean;
  #failure: Error | undefined;
  #failureTold: Promise<void> = Promise.resolve();
  #closed = false;

  constructor(options: {
    env: VolumeEnvironment;
    dir: string;
    volumeId: string;
    limits: VolumeLimits;
    host: JournalHost;
    log: IntentLog;
    predecessors: File[];
    /** everything up to here is durable already */
    committedCut: number;
    mapBytes: number;
    /** bytes of the predecessors */
    earlierBytes: number;
    strays: boolean;
    /** without this life's log everything is as a life that ended clean has left it */
    untouched: boolean;
  }) {
    this.#env = options.env;
    this.#dir = options.dir;
    this.#volumeId = options.volumeId;
    this.#limits = options.limits;
    this.#host = options.host;
    this.#log = options.log;
    this.#predecessors = options.predecessors;
    this.#retired = [...options.predecessors];
    this.#lastRecord = options.log.lastLsn;
    this.#committedCut = options.committedCut;
    this.#mapBytes = options.mapBytes;
    this.#earlierBytes = options.earlierBytes;
    this.strays = options.strays;
    this.#untouched = options.untouched;
  }

  /** Bytes of all logs that no checkpoint has replaced yet. */
  get logBytes(): number {
    return this.#earlierBytes + this.#log.length;
  }

  /** Bytes of the newest checkpoint's file. */
  get mapBytes(): number {
    return this.#mapBytes;
  }

  /** Appends a record; throws (ENOSPC, EIO) and changes nothing when it can't. The caller changes the map after it. */
  append(type: number, small: number, a: number, b: number, privileged: boolean): void {
    if (this.#failure) throw this.#failure;
    if (!privileged) this.#checkGrowth();
    this.#lastRecord = this.#appendToLog(type, small, a, b, privileged);
  }

  /** The same for a record that carries an id; may use the reserve. */
  appendWithId(type: number, small: number, kind: number, id: string): void {
    if (this.#failure) throw this.#failure;
    try {
      this.#lastRecord = this.#log.appendWithId(type, small, kind, id);
    } catch (error) {
      if (this.#log.broken) this.#fail(error as Error);
      throw error;
    }
  }

  #appendToLog(type: number, small: number, a: number, b: number, privileged: boolean): number {
    try {
      return this.#log.append(type, small, a, b, privileged);
    } catch (error) {
      if (this.#log.broken) this.#fail(error as Error);
      throw error;
    }
  }

  /** Writes zeros ahead of the log's tail, so that trims and commits work on a disk that fills up later. */
  reserve(): void {
    this.#log.reserve(false);
  }

  /** Whether an unprivileged append would have to wait for a checkpoint (durability rule 22). */
  get full(): boolean {
    return this.logBytes >= this.#threshold * this.#limits.logHardFactor || this.#log.reserveInUse;
  }

  get #threshold(): number {
    return Math.max(this.#limits.checkpointLogBytes, this.#mapBytes);
  }

  #checkGrowth(): void {
    if (this.logBytes < this.#threshold && !this.#log.reserveInUse) return;
    this.checkpointSoon();
    // Whoever was under way when the log became full goes on while a checkpoint makes room: they are few.
    if (this.full && !this.#checkpointing)
      throw new IoError("ENOSPC", `the intent log is full (${this.logBytes} bytes)`);
  }

  /** Starts a checkpoint unless one runs, or one failed within the last second. */
  checkpointSoon(): void {
    if (this.#checkpointing || this.#failure || this.#env.clock.now() - this.#checkpointFailedAt < 1000) return;
    this.checkpoint(false).catch((error: unknown) => {
      this.#env.log(
        "warn",
        `checkpoint of volume ${this.#volumeId} failed, will be tried again: ${describeError(error)}`,
      );
    });
  }

  /** Resolves when a checkpoint has emptied the log, or could not. */
  async makeRoom(): Promise<void> {
    await this.settled(); // it may have begun before most of what is in the log now
    if (!this.full) return;
    this.checkpointSoon();
    await this.settled();
  }

  /** Resolves when the running checkpoint, if any, has ended, one way or the other. */
  async settled(): Promise<void> {
    await this.#checkpointing?.catch(() => undefined);
  }

  /** Resolves when everything appended, and every byte written, before the call is durable. */
  flush(): Promise<void> {
    const failure = this.#failure;
    if (failure) return this.#failureTold.then(() => Promise.reject(failure));
    const target = this.#started + 1;
    this.#wanted = target;
    this.#running ??= this.#run();
    return this.#rounds.wait(target);
  }

  async #run(): Promise<void> {
    await Promise.resolve(); // flushes parsed in this turn share the round
    while (this.#wanted > this.#started && !this.#failure) {
      this.#started++;
      const began = this.#env.clock.now();
      let succeeded = false;
      try {
        await this.#round();
        succeeded = true;
        this.#rounds.advance(this.#started);
      } catch (error) {
        if (error instanceof RoundFailure) this.#rounds.advance(this.#started, error.cause as Error);
        else this.#fail(error as Error);
      }
      this.#env.observer?.roundEnded(this.#volumeId, this.#env.clock.now() - began, succeeded);
    }
    this.#running = undefined;
  }

  async #round(): Promise<void> {
    const rotation = this.#rotation;
    const cut = rotation ? this.#rotate(rotation) : this.#log.lastLsn;
    const mustCommit = rotation !== undefined || this.#lastRecord > this.#committedCut;
    const syncs: Promise<void>[] = [];
    for (const layer of this.#host.layers()) if (layer.dirty) syncs.push(layer.sync());
    for (const log of this.#predecessors) syncs.push(log.datasync());
    await allOf(syncs);
    if (!mustCommit) return;
    try {
      this.#appendToLog(RecordType.commit, 0, cut, this.#log.durableLsn, true);
    } catch (error) {
      throw new RoundFailure("commit", { cause: error });
    }
    await this.#log.sync();
    this.#committedCut = cut;
    this.#predecessors = [];
  }

  /** Ends the log and goes over to the next one, with the map as of now, in one turn. @returns the cut */
  #rotate(rotation: Rotation): number {
    this.#rotation = undefined;
    this.#untouched = false;
    try {
      this.#appendToLog(RecordType.end, 0, 0, 0, true);
    } catch (error) {
      throw new RoundFailure("end", { cause: error });
    }
    rotation.cut = this.#log.lastLsn;
    rotation.frozen = this.#host.freeze();
    this.#predecessors.push(this.#log.file);
    this.#retired.push(this.#log.file);
    this.#earlierBytes += this.#log.length;
    rotation.next.begin(rotation.cut);
    this.#log = rotation.next;
    return rotation.cut;
  }

  /** Nobody is told of the failure before the mark stands: whoever hears of it may kill this process at once. */
  #fail(error: Error): void {
    if (this.#failure) return;
    const failure = new IoError("EIO", `the volume is poisoned by a failed sync: ${error.message}`, error);
    this.#failure = failure;
    this.#failureTold = this.#host.poison(error).then(() => this.#rounds.fail(failure));
  }

  /**
   * Writes a checkpoint. A failure changes nothing; the log simply stays longer.
   * @param clean nothing will be written any more: the next start finds everything durable
   */
  checkpoint(clean: boolean): Promise<void> {
    // One that runs may have taken its cut before what the caller means.
    if (this.#checkpointing) return this.settled().then(() => this.checkpoint(clean));
    if (this.#failure) return Promise.reject(this.#failure);
    if (this.#closed) return Promise.reject(new IoError("ESHUTDOWN", "the journal is closed"));
    const began = this.#env.clock.now();
    const ended = (succeeded: boolean): void =>
      this.#env.observer?.checkpointEnded(this.#volumeId, this.#env.clock.now() - began, succeeded);
    this.#checkpointing = this.#checkpoint(clean)
      .then(() => ended(true))
      .catch((error: unknown) => {
        ended(false);
        this.#checkpointFailedAt = this.#env.clock.now();
        throw error;
      })
      .finally(() => {
        this.#checkpointing = undefined;
      });
    return this.#checkpointing;
  }

  async #checkpoint(clean: boolean): Promise<void> {
    await this.#removeLaterLogs();
    const number = this.#log.number + 1;
    const next = await IntentLog.create(
      this.#env,
      this.#dir,
      { volumeId: this.#volumeId, number, predecessor: undefined, strays: this.strays },
      this.#limits,
    );
    const rotation: Rotation = { next, frozen: undefined, cut: 0 };
    try {
      // On a full disk the old log, with its reserve, must not be given up.
      if (clean) next.reserveOne();
      else next.reserve(false);
      this.#rotation = rotation;
      await this.flush();
    } catch (error) {
      if (this.#rotation === rotation) this.#rotation = undefined;
      if (this.#log !== next) await discardLog(this.#env, next.file);
      rotation.frozen?.map.release();
      throw error;
    }
    const { map, table, checkpoint } = rotation.frozen!;
    let unused: number[];
    try {
      await this.#host.olderFilesMayGo(); // before the map: recovery begins with the newest
      const complete = { ...checkpoint, number, cut: rotation.cut, clean };
      ({ bytes: this.#mapBytes, unused } = await writeMapFile(this.#env, this.#dir, complete, map, table));
    } finally {
      map.release();
    }
    this.#earlierBytes = 0;
    for (const file of this.#retired.splice(0)) await file.close();
    await removeOlderFiles(this.#env, this.#dir, number);
    this.#host.ownersUnused(unused);
    if (clean) await this.#log.release();
  }

  /**
   * Everything durable, and nothing that the next start would have to suspect: a checkpoint or, when the one that is there
   * says it all, no log behind it. Nothing may be appended any more. A failure leaves a state that the next start recovers.
   */
  async finish(): Promise<void> {
    await this.settled();
    if (!this.#untouched || this.#log.length > 0 || this.strays) {
      await this.#log.shed();
      return this.checkpoint(true);
    }
    await this.flush(); // what was overwritten in place
    // Whoever came too late must not believe that it was logged.
    this.#failure = new IoError("ESHUTDOWN", "the journal is closed");
    await this.#env.fs.unlink(this.#log.file.path);
    await this.#env.fs.syncDirectory(this.#dir);
  }

  /** What an earlier attempt may have left: a log without a place in the chain must never stand in the middle of it. */
  async #removeLaterLogs(): Promise<void> {
    const later = numbered(await this.#env.fs.readdir(this.#dir), "intent").filter((n) => n > this.#log.number);
    if (later.length === 0) return;
    for (const number of later) await this.#env.fs.unlink(logPath(this.#dir, number));
    await this.#env.fs.syncDirectory(this.#dir);
  }

  /** Closes the descriptors; nothing may be running. */
  async close(): Promise<void> {
    this.#closed = true;
    await this.#failureTold;
    await this.settled();
    await this.#running?.catch(() => undefined);
    for (const file of this.#retired.splice(0)) await file.close();
    await this.#log.file.close();
  }
}
