import { IoError, type SourceError, UllageError } from "../base/errors.ts";
import { orAborted } from "../base/or-aborted.ts";
import { isOfAPlace } from "./damage.ts";
import type { FetchLanes, FetchTraffic, Job, Lane } from "./fetch-lanes.ts";
import type { RangeMap } from "./range-map.ts";

/*
 * Single-flight: at any moment a unit is in at most one flight, a request for a run of neighbouring units, and whoever
 * needs the unit waits for that flight.
 *
 *     queued --lane has room--> running --transfer returns--> landed (units ready), or failed (none)
 *        \                         \
 *         last waiter leaves        last waiter leaves: aborted
 *          \--> gone                 \--> abandoned --transfer returns--> gone
 *
 * While a flight is queued it takes in what is asked for right behind it: who has many small requests under way gets few
 * large ones. A flight keeps its units until its transfer has returned, however it ends: bytes of a failed request may still
 * be on their way into the cache file, and no other flight may call these units ready before they have arrived.
 *
 * A flight may bring more than one of its waiters asked for. When it fails because some bytes can't be had (a damaged
 * cluster, a bad sector), these need not be his: he asks once more, for each of his units alone.
 */

/** A request is at most this long: the larger, the longer somebody waits who needs only a part of it. */
const MAX_FLIGHT_BYTES: Record<Lane, number> = {
  foreground: 8 * 1024 * 1024,
  readahead: 1024 * 1024,
  background: 1024 * 1024,
};

/** A queued flight grows to so much: what is worth one request, and makes nobody wait much longer who is in it. */
const MAX_JOINED_BYTES = 1024 * 1024;

/** Larger ranges are fetched one window after the other. */
const WINDOW_BYTES = 32 * 1024 * 1024;

/** A fetch starts over when a flight that it joined came to nothing through no fault of its own; so often at most. */
const MAX_ROUNDS = 6;

type Outcome = { kind: "landed" } | { kind: "again" } | { kind: "failed"; error: unknown; lane: Lane };

/** What a transfer may know about its flight. */
export interface Transfer {
  /** units [first, end) */
  readonly first: number;
  readonly end: number;
  readonly lane: Lane;
  readonly signal: AbortSignal;
  /** Aborted when somebody has come to wait for it who is in the foreground, and it is not. */
  readonly hurry: AbortSignal;
}

class Flight implements Job, Transfer {
  readonly first: number;
  end: number;
  /** The lane that it is queued in or was started from. */
  lane: Lane;
  started = false;
  waiters = 0;
  abandoned = false;
  ended = false;
  readonly done: Promise<Outcome>;
  readonly #controller = new AbortController();
  readonly #hurry = new AbortController();
  readonly #transfer: (flight: Flight) => Promise<Outcome>;
  #settle!: (outcome: Outcome) => void;

  constructor(first: number, end: number, lane: Lane, transfer: (flight: Flight) => Promise<Outcome>) {
    this.first = first;
    this.end = end;
    this.lane = lane;
    this.#transfer = transfer;
    this.done = new Promise((resolve) => (this.#settle = resolve));
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  get hurry(): AbortSignal {
    return this.#hurry.signal;
  }

  async run(): Promise<void> {
    this.started = true;
    const outcome = await this.#transfer(this);
    this.ended = true;
    this.#settle(outcome);
  }

  /** The flight was never started. */
  cancel(): void {
    this.ended = true;
    this.#settle({ kind: "again" });
  }

  /** It is under way already: what is still ahead of it may go faster. */
  hasten(): void {
    this.#hurry.abort();
  }

  abort(): void {
    this.abandoned = true;
    this.#controller.abort(new UllageError("aborted", "nobody waits for this fetch any more"));
  }
}

export interface FetchQueueOptions {
  map: RangeMap;
  lanes: FetchLanes;
  traffic: FetchTraffic;
  /** What somebody who waits gets at least, aligned; a power of two. */
  missBytes: number;
  /**
   * Brings the units into the cache file and marks them ready; rejects when it can't.
   * @returns false when the bytes came but can't be counted on: whoever still needs them asks again
   */
  transfer(request: Transfer): Promise<boolean>;
}

export class FetchQueue {
  readonly #options: FetchQueueOptions;
  readonly #map: RangeMap;
  readonly #missUnits: number;
  readonly #byUnit = new Map<number, Flight>();
  /** The flight that holds every unit, while the whole object is being streamed. */
  #whole: Flight | undefined;
  #closed = false;

  constructor(options: FetchQueueOptions) {
    this.#options = options;
    this.#map = options.map;
    this.#missUnits = Math.max(1, options.missBytes / options.map.unitBytes);
  }

  /**
   * Resolves when every unit of the byte range is ready.
   * @throws what the transfer of a unit was rejected with, or the reason of `signal`
   */
  async fetch(offset: number, length: number, lane: Lane, signal?: AbortSignal): Promise<void> {
    const end = Math.min(offset + length, this.#map.size);
    for (let at = offset; at < end; at += WINDOW_BYTES) {
      const window = Math.min(WINDOW_BYTES, end - at);
      await this.#fetchUnits(this.#map.unitAt(at), this.#map.unitEnd(at, window), lane, signal);
    }
  }

  async #fetchUnits(first: number, end: number, lane: Lane, signal: AbortSignal | undefined): Promise<void> {
    let elsewhere: SourceError | undefined;
    for (let round = 0; round < MAX_ROUNDS; round++) {
      signal?.throwIfAborted();
      if (this.#closed) throw new UllageError("closed", "the blob is closed");
      const flights = this.#board(first, end, lane, elsewhere !== undefined);
      if (flights.length === 0) return;
      const outcomes = await this.#ride(flights, lane, signal);
      for (const [index, outcome] of outcomes.entries()) {
        if (outcome.kind !== "failed") continue;
        // A background request may fail where a foreground one would not: it has fewer retries.
        if (lane === "foreground" && outcome.lane !== "foreground") continue;
        const flight = flights[index];
        if ((flight.first >= first && flight.end <= end) || !isOfAPlace(outcome.error)) throw outcome.error;
        elsewhere = outcome.error;
      }
    }
    if (this.#map.nextMissing(first, end) < end) {
      const often = `units ${first} to ${end - 1} were fetched ${MAX_ROUNDS} times and did not stay ready`;
      throw new IoError("EIO", often, elsewhere);
    }
  }

  /**
   * The flights, joined or new, that bring every missing unit of [first, end).
   * @param alone new ones bring a unit each
   */
  #board(first: number, end: number, lane: Lane, alone: boolean): Flight[] {
    const map = this.#map;
    const flights: Flight[] = [];
    const maxUnits = alone ? 1 : Math.max(1, Math.floor(MAX_FLIGHT_BYTES[lane] / map.unitBytes));
    let unit = map.nextMissing(first, end);
    while (unit < end) {
      let flight = this.#whole ?? this.#byUnit.get(unit);
      if (flight === undefined) {
        // Who waits for a little gets what is around it: the round trip costs more.
        const least = lane === "foreground" && !alone ? this.#missUnits : 1;
        let runFirst = unit;
        while (runFirst % least !== 0 && this.#isFree(runFirst - 1)) runFirst--;
        const limit = Math.min(Math.ceil(end / least) * least, map.units, runFirst + maxUnits);
        let runEnd = unit + 1;
        while (runEnd < limit && this.#isFree(runEnd)) runEnd++;
        const grown = alone ? undefined : this.#join(runFirst, runEnd, lane);
        flight = grown ?? this.#launch(runFirst, runEnd, lane);
      } else {
        this.#options.lanes.promote(flight, lane);
        if (lane === "foreground" && flight.lane !== lane) flight.hasten();
      }
      flight.waiters++;
      flights.push(flight);
      unit = map.nextMissing(Math.min(flight.end, end), end);
    }
    return flights;
  }

  /** Whether a flight may be made for the unit. */
  #isFree(unit: number): boolean {
    return !this.#map.has(unit) && !this.#byUnit.has(unit);
  }

  /** Makes the units part of the flight that ends where they begin, if that is queued in the same lane and short. */
  #join(first: number, end: number, lane: Lane): Flight | undefined {
    const flight = this.#byUnit.get(first - 1);
    if (flight === undefined || flight.started || flight.lane !== lane) return undefined;
    if ((end - flight.first) * this.#map.unitBytes > MAX_JOINED_BYTES) return undefined;
    this.#hold(flight, first, end);
    flight.end = end;
    return flight;
  }

  #hold(flight: Flight, first: number, end: number): void {
    for (let unit = first; unit < end; unit++) this.#byUnit.set(unit, flight);
  }

  #launch(first: number, end: number, lane: Lane): Flight {
    const flight = new Flight(first, end, lane, (started) => this.#transfer(started));
    this.#hold(flight, first, end);
    this.#options.lanes.submit(flight);
    return flight;
  }

  async #transfer(flight: Flight): Promise<Outcome> {
    try {
      return { kind: (await this.#options.transfer(flight)) ? "landed" : "again" };
    } catch (error) {
      return flight.abandoned ? { kind: "again" } : { kind: "failed", error, lane: flight.lane };
    } finally {
      this.#release(flight);
    }
  }

  #release(flight: Flight): void {
    if (this.#whole === flight) this.#whole = undefined;
    else for (let unit = flight.first; unit < flight.end; unit++) this.#byUnit.delete(unit);
  }

  /** Waits for all flights, or until the signal; then leaves them. */
  async #ride(flights: Flight[], lane: Lane, signal: AbortSignal | undefined): Promise<Outcome[]> {
    const all = Promise.all(flights.map((flight) => flight.done));
    if (lane === "foreground") this.#options.traffic.started();
    try {
      return await orAborted(all, signal);
    } finally {
      if (lane === "foreground") this.#options.traffic.ended();
      for (const flight of flights) {
        flight.waiters--;
        if (flight.waiters === 0 && !flight.ended) this.#abandon(flight);
      }
    }
  }

  /** Nobody waits for the flight any more. */
  #abandon(flight: Flight): void {
    if (this.#options.lanes.withdraw(flight)) {
      this.#release(flight);
      flight.cancel();
    } else {
      flight.abort();
    }
  }

  /**
   * Holds every unit while `transfer` brings the whole object in one go; waits first for flights under way.
   * @throws what `transfer` was rejected with
   */
  async fetchWhole(transfer: (request: Transfer) => Promise<boolean>, signal?: AbortSignal): Promise<void> {
    while (this.#flies()) await this.#landed();
    signal?.throwIfAborted();
    if (this.#closed) throw new UllageError("closed", "the blob is closed");
    if (this.#map.missing === 0) return;
    const flight = new Flight(0, this.#map.units, "foreground", async (started) => {
      try {
        return { kind: (await transfer(started)) ? "landed" : "again" };
      } catch (error) {
        return { kind: "failed", error, lane: started.lane };
      } finally {
        this.#release(started);
      }
    });
    this.#whole = flight;
    flight.waiters++;
    const onAbort = (): void => flight.abort();
    signal?.addEventListener("abort", onAbort, { once: true });
    await flight.run();
    signal?.removeEventListener("abort", onAbort);
    const outcome = await flight.done;
    signal?.throwIfAborted();
    if (outcome.kind === "failed") throw outcome.error;
    if (outcome.kind === "again") throw new IoError("EIO", "the cache file lost what was streamed into it");
  }

  /** Whether a flight has the unit now. */
  isInFlight(unit: number): boolean {
    return this.#whole !== undefined || this.#byUnit.has(unit);
  }

  /**
   * Keeps units, which no flight has, from being fetched while `work` runs; whoever asks for one of them meanwhile waits
   * and asks again.
   */
  async hold(runs: readonly { first: number; end: number }[], work: () => Promise<void>): Promise<void> {
    const flights: Flight[] = [];
    const { promise, resolve } = Promise.withResolvers<Outcome>();
    for (const { first, end } of runs) {
      const flight = new Flight(first, end, "background", () => promise);
      flight.waiters++;
      this.#hold(flight, first, end);
      flights.push(flight);
    }
    const held = flights.map((flight) => flight.run());
    try {
      await work();
    } finally {
      for (const flight of flights) this.#release(flight);
      resolve({ kind: "again" });
      await Promise.all(held);
    }
  }

  /** The same for every unit, after the flights that are under way. */
  async holdAll(work: () => Promise<void>): Promise<void> {
    while (this.#flies()) await this.#landed();
    const { promise, resolve } = Promise.withResolvers<Outcome>();
    const flight = new Flight(0, this.#map.units, "background", () => promise);
    flight.waiters++;
    this.#whole = flight;
    const held = flight.run();
    try {
      await work();
    } finally {
      this.#release(flight);
      resolve({ kind: "again" });
      await held;
    }
  }

  #flies(): boolean {
    return this.#whole !== undefined || this.#byUnit.size > 0;
  }

  /** Who waited for the same flights may have made new ones before its caller goes on: he has to look again. */
  async #landed(): Promise<void> {
    await Promise.all([...this.#flights()].map((flight) => flight.done));
  }

  #flights(): Set<Flight> {
    const flights = new Set(this.#byUnit.values());
    if (this.#whole !== undefined) flights.add(this.#whole);
    return flights;
  }

  /** Aborts everything and waits until nothing of it is under way. */
  async close(): Promise<void> {
    this.#closed = true;
    const flights = this.#flights();
    for (const flight of flights) this.#abandon(flight);
    await Promise.all([...flights].map((flight) => flight.done));
    this.#options.lanes.close();
  }
}
