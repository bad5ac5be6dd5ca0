import type { Clock } from "../base/clock.ts";
import { diskPlaces } from "../base/pool-slots.ts";

/*
 * Who may talk to the source now. Three lanes, each first come first served, none waiting for a slower one:
 *
 *   foreground   somebody waits for the bytes
 *   readahead    somebody will probably want them in a moment
 *   background   hydration; while there is foreground traffic on any blob of the host, only what does not slow it down
 */
export type Lane = "foreground" | "readahead" | "background";

const lanes = ["foreground", "readahead", "background"] as const;

/** Requests at once, per blob, so that a source that hangs takes nothing from the others. */
const LANE_LIMIT: Record<Lane, number> = { foreground: 32, readahead: 8, background: 16 };

/**
 * In the foreground, for a file of this host: those for which there are threads, and a few that are next. Who waits longer
 * waits here, where his requests grow, and takes no memory yet.
 */
const LOCAL_FOREGROUND_LIMIT = diskPlaces.total + 2;

/**
 * Readahead and background together: no more than a backend lets through, because what waits inside a backend can't be
 * moved to a faster lane any more.
 */
const BEHIND_LIMIT = 16;

/**
 * A guest that boots reads, thinks for a moment, reads again: the background keeps back until nobody has waited for the
 * source for this long. Requests that are under way can't be made shorter, so a read that meets sixteen of them waits
 * several times as long as one that meets two.
 */
const QUIET_MS = 500;

/** Who waits longer than this for a source that does not answer holds up nobody's background any more. */
const PATIENCE_MS = 2000;

/**
 * When a reader is expected, the background makes no requests at all for so long: his first read then has the line for
 * itself. It costs hydration little, since it happens once per client.
 */
const EXPECTED_MS = 100;

/** A source that throttles is asked less at once; so long, ms, nothing more is changed. */
const ADAPT_MS = 1000;
/** Who waits, waits this many times as long beside the background as without it: then there is too much of that. */
const TOO_SLOW = 3;
const TOO_SLOW_MS = 10;
/** The same while there is foreground traffic, where every read that is held up counts. */
const TOO_SLOW_BESIDE = 1.5;
const TOO_SLOW_BESIDE_MS = 2;
/** What the background lane may have beside foreground traffic grows from nothing by so much a second, until it has one. */
const BESIDE_FIRST_STEP = 0.25;
/** Weight of one more request in what is usual. */
const EWMA = 0.1;

/**
 * The traffic of all blobs of the host, by which the background is measured: additive increase, multiplicative decrease.
 * The limit is halved when a source throttles (429, 503), or when who waits is held up by the background; while neither
 * happens it grows by one a second. Beside foreground traffic a second, stricter one holds, which begins with nothing: a guest
 * that boots over a narrow line has it for itself, and on a wide one hydration goes on.
 */
export class FetchTraffic {
  readonly #clock: Clock;
  readonly #listeners = new Set<() => void>();
  readonly #closing = new AbortController();
  #foreground = 0;
  #limit: number = LANE_LIMIT.background;
  #adaptedAt = -Infinity;
  #limitBeside = 0;
  #adaptedBesideAt = -Infinity;
  /** Requests of the background under way. */
  #background = 0;
  /** How long who waits waits usually, ms, beside the background and without it; NaN: unknown. */
  readonly #usual = { beside: Number.NaN, without: Number.NaN };
  #busyUntil = -Infinity;
  #silentUntil = -Infinity;
  #watching = false;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** How many requests of the background may be under way per blob. */
  get backgroundLimit(): number {
    const now = this.#clock.now();
    if (now < this.#silentUntil) return 0;
    const busy = now < this.#busyUntil;
    return Math.floor(busy ? Math.min(this.#limitBeside, this.#limit) : this.#limit);
  }

  /** A source says that it is asked too much. */
  throttled(): void {
    this.#adapt(() => this.#limit / 2);
  }

  /** A request has ended well. @param ms it took */
  took(lane: Lane, ms: number): void {
    if (lane !== "foreground") {
      this.#adapt(() => this.#limit + 1);
      return;
    }
    const beside = this.#background > 0 ? "beside" : "without";
    const usual = this.#usual[beside];
    this.#usual[beside] = Number.isNaN(usual) ? ms : usual + EWMA * (ms - usual);
    if (this.#usual.beside > TOO_SLOW * this.#usual.without + TOO_SLOW_MS) this.throttled();
    this.#adaptBeside();
  }

  #adaptBeside(): void {
    const now = this.#clock.now();
    const { beside, without } = this.#usual;
    if (this.#limitBeside >= 1 && beside > TOO_SLOW_BESIDE * without + TOO_SLOW_BESIDE_MS) {
      this.#limitBeside = this.#limitBeside >= 2 ? this.#limitBeside / 2 : 0;
    } else if (now - this.#adaptedBesideAt >= ADAPT_MS) {
      const step = this.#limitBeside < 1 ? BESIDE_FIRST_STEP : 1;
      this.#limitBeside = Math.min(LANE_LIMIT.background, this.#limitBeside + step);
      for (const listener of this.#listeners) listener();
    } else return;
    this.#adaptedBesideAt = now;
    this.#usual.beside = Number.NaN; // of another number of requests
  }

  #adapt(change: () => number): void {
    const now = this.#clock.now();
    if (now - this.#adaptedAt < ADAPT_MS) return;
    this.#adaptedAt = now;
    this.#limit = Math.min(LANE_LIMIT.background, Math.max(1, change()));
    for (const listener of this.#listeners) listener();
  }

  /** A request of the background begins, or ends. */
  backgroundRuns(change: 1 | -1): void {
    this.#background += change;
  }

  started(): void {
    this.#foreground++;
    this.#keepBack(PATIENCE_MS);
  }

  ended(): void {
    this.#foreground--;
    if (this.#foreground === 0) this.#keepBack(QUIET_MS);
  }

  /** Somebody is about to read, a client that connects for instance: the background keeps back for him already. */
  expected(): void {
    this.#silentUntil = this.#clock.now() + EXPECTED_MS;
    if (!this.#watching) void this.#watch();
  }

  #keepBack(ms: number): void {
    this.#busyUntil = this.#clock.now() + ms;
    if (!this.#watching) void this.#watch();
  }

  /** `listener` is called when the background may make more requests than before. */
  onQuiet(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** When all blobs are closed: sleeps no longer. */
  close(): void {
    this.#closing.abort();
  }

  async #watch(): Promise<void> {
    this.#watching = true;
    for (;;) {
      const now = this.#clock.now();
      const until = now < this.#silentUntil ? this.#silentUntil : this.#busyUntil;
      if (now >= until) break;
      try {
        await this.#clock.sleep(Math.min(until - now, QUIET_MS), this.#closing.signal); // it may come to be sooner
      } catch {
        return; // closed
      }
      for (const listener of this.#listeners) listener();
    }
    this.#watching = false;
    for (const listener of this.#listeners) listener(); // a timer may be early: then it was not time yet
  }
}

/** One request to the source, queued or running. */
export interface Job {
  lane: Lane;
  /** Never rejects. */
  run(): Promise<void>;
}

export class FetchLanes {
  readonly #traffic: FetchTraffic;
  readonly #foregroundLimit: number;
  readonly #queued: Record<Lane, Set<Job>> = { foreground: new Set(), readahead: new Set(), background: new Set() };
  readonly #running: Record<Lane, number> = { foreground: 0, readahead: 0, background: 0 };
  readonly #forget: () => void;

  /** @param local the source is a file of this host */
  constructor(traffic: FetchTraffic, local = false) {
    this.#traffic = traffic;
    this.#foregroundLimit = local ? LOCAL_FOREGROUND_LIMIT : LANE_LIMIT.foreground;
    this.#forget = traffic.onQuiet(() => this.#pump());
  }

  submit(job: Job): void {
    this.#queued[job.lane].add(job);
    this.#pump();
  }

  /** Moves the job to a faster lane, if it is queued in a slower one. */
  promote(job: Job, lane: Lane): void {
    if (lanes.indexOf(lane) >= lanes.indexOf(job.lane) || !this.#queued[job.lane].delete(job)) return;
    job.lane = lane;
    this.submit(job);
  }

  /** @returns false when the job is running already */
  withdraw(job: Job): boolean {
    return this.#queued[job.lane].delete(job);
  }

  close(): void {
    this.#forget();
  }

  #pump(): void {
    for (const lane of lanes) {
      while (this.#queued[lane].size > 0 && this.#hasRoom(lane)) {
        const job = this.#queued[lane].values().next().value!;
        this.#queued[lane].delete(job);
        void this.#run(job, lane);
      }
    }
  }

  #hasRoom(lane: Lane): boolean {
    const running = this.#running;
    if (lane !== "foreground" && running.readahead + running.background >= BEHIND_LIMIT) return false;
    return running[lane] < this.#limitOf(lane);
  }

  #limitOf(lane: Lane): number {
    if (lane === "foreground") return this.#foregroundLimit;
    return lane === "background" ? this.#traffic.backgroundLimit : LANE_LIMIT[lane];
  }

  async #run(job: Job, lane: Lane): Promise<void> {
    this.#running[lane]++;
    if (lane === "background") this.#traffic.backgroundRuns(1);
    await job.run();
    if (lane === "background") this.#traffic.backgroundRuns(-1);
    this.#running[lane]--;
    this.#pump();
  }
}
