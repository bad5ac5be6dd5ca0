/**
 * What an open dashboard asks of the daemon while a volume's page is shown: the stream of events, and everything that the
 * page repeats, at the page's own pace (src/dashboard/public/, polling.js above all) without events to calm it, which is
 * the busiest it gets. A browser would take the CPU that is being measured.
 */
import { setTimeout as sleep } from "node:timers/promises";
import type { UllageServer } from "./ullage.ts";

/** As in polling.js: the pause is at least so many times what the work took. */
const workShare = 10;
const maxPauseMs = 30_000;

type Call = (offset: number, limit: number) => Promise<unknown>;
interface MapGridModule {
  readMap: (size: number, cells: number, call: Call) => Promise<unknown>;
}
const mapCells = 1600;

export class DashboardVisit {
  readonly #ullage: UllageServer;
  readonly #stop = new AbortController();
  readonly #work: Promise<unknown>[] = [];
  /** Answers so far. */
  answers = 0;

  private constructor(ullage: UllageServer) {
    this.#ullage = ullage;
  }

  /** @param size of the volume, bytes */
  static async begin(ullage: UllageServer, volume: string, size: number): Promise<DashboardVisit> {
    const visit = new DashboardVisit(ullage);
    const grid = new URL("../src/dashboard/public/map-grid.js", import.meta.url).href;
    const { readMap } = (await import(grid)) as MapGridModule;
    const get = (path: string): Promise<unknown> => ullage.api("GET", `/v1/${path}`);
    const of = `volumes/${volume}`;
    visit.#work.push(ullage.events(visit.#stop.signal));
    visit.#repeat(2000, () => visit.#sweep());
    visit.#repeat(2000, () => Promise.all([get(of), get(`${of}/connections`)]));
    visit.#repeat(2000, () => get("traffic"));
    visit.#repeat(1500, () => readMap(size, mapCells, (at, limit) => get(`${of}/map?offset=${at}&limit=${limit}`)));
    visit.#repeat(6000, () => get(`${of}/space`));
    visit.#repeat(10_000, () => get(`${of}/snapshots`));
    visit.#repeat(10_000, () => get("health"));
    visit.#repeat(15_000, () => get("exports"));
    return visit;
  }

  async #sweep(): Promise<void> {
    let cursor: string | null = "";
    do {
      const query: string = cursor === "" ? "" : `&cursor=${encodeURIComponent(cursor)}`;
      const page = (await this.#ullage.api("GET", `/v1/volumes?limit=100${query}`)) as { next: string | null };
      cursor = page.next;
    } while (cursor !== null);
  }

  #repeat(pauseMs: number, work: () => Promise<unknown>): void {
    const run = async (): Promise<void> => {
      while (!this.#stop.signal.aborted) {
        const began = performance.now();
        await work();
        this.answers++;
        const pause = Math.min(maxPauseMs, Math.max(pauseMs, workShare * (performance.now() - began)));
        await sleep(pause, undefined, { signal: this.#stop.signal }).catch(() => undefined);
      }
    };
    this.#work.push(run());
  }

  /** @throws whatever an answer was instead of the one expected */
  async end(): Promise<void> {
    this.#stop.abort();
    await Promise.all(this.#work);
  }
}
