import type { Clock } from "../base/clock.ts";

/*
 * Who may talk to the source now. Three lanes, each first come first served, none waiting for a slower one:
 *
 *   foreground   somebody waits for the bytes
 *   readahead    somebody will probably want them in a moment
 *   background   hydration; shrinks to a trickle while there is foreground traffic on any blob of the host
 */
export type Lane = "foreground" | "readahead" | "background";

const lanes = ["foreground", "readahead", "background"] as const;

/** Requests at once, per blob, so that a source that hangs takes nothing from the others. */
const LANE_LIMIT: Record<Lane, number> = { foreground: 32, readahead: 8, background: 16 };

/**
 * Readahead and background together: no more than a backend lets through, because what waits inside a backend can't be
 * moved to a faster lane any more.
 */
const BEHIND_LIMIT = 16;

/** What is left to the background lane while there is foreground traffic: enough to use what the line has to spare. */
const BACKGROUND_LIMIT_WHEN_BUSY = 2;

/**
 * A guest that boots reads, thinks for a moment, reads again: the background keeps back until nobody has waited for the
 * source for this long. Requests that are under way can't be made shorter, so a read that meets sixteen of them waits
 * several times as long as one that meets two.
 */
const QUIET_MS = 500;

/**
 * When a reader is expected, the background makes no requests at all for so long: his first read then has the line for
 * itself. It costs hydration little, since it happens once per client.
 */
const EXPECTED_MS = 100;

/** The foreground traffic of all blobs of the host. */
export class FetchTraffic {
  readonly #clock: Clock;
  readonly #listeners = new Set<() => void>();
  readonly #closing = new AbortController();
  #foreground = 0;
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
    return this.#foreground > 0 || now < this.#busyUntil ? BACKGROUND_LIMIT_WHEN_BUSY : LANE_LIMIT.background;
  }

  started(): void {
    this.#foreground++;
  }

  ended(): void {
    this.#foreground--;
    if (this.#foreground === 0) this.#keepBack();
  }

  /** Somebody is about to read, a client that connects for instance: the background keeps back for him already. */
  expected(): void {
    this.#silentUntil = this.#clock.now() + EXPECTED_MS;
    this.#keepBack();
  }

  #keepBack(): void {
    this.#busyUntil = this.#clock.now() + QUIET_MS;
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
      if (now >= until || (this.#foreground > 0 && until === this.#busyUntil)) break;
      try {
        await this.#clock.sleep(until - now, this.#closing.signal);
      } catch {
        return; // closed
      }
      for (const listener of this.#listeners) listener();
    }
    this.#watching = false;
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
  readonly #queued: Record<Lane, Set<Job>> = { foreground: new Set(), readahead: new Set(), background: new Set() };
  readonly #running: Record<Lane, number> = { foreground: 0, readahead: 0, background: 0 };
  readonly #forget: () => void;

  constructor(traffic: FetchTraffic) {
    this.#traffic = traffic;
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
    return running[lane] < (lane === "background" ? this.#traffic.backgroundLimit : LANE_LIMIT[lane]);
  }

  async #run(job: Job, lane: Lane): Promise<void> {
    this.#running[lane]++;
    await job.run();
    this.#running[lane]--;
    this.#pump();
  }
}
