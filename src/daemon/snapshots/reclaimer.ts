import { describeError, UllageError } from "../../base/errors.ts";
import { reclaim, type ReclaimHost, type Reclaimed, type ReclaimOptions } from "./reclaim.ts";
import { Turns } from "../turns.ts";

/** Removals that follow each other within this time are looked at together. */
const quietMs = 5000;

/** What reclaim did since the process started; for metrics. */
export interface ReclaimFigures {
  runs: number;
  failures: number;
  /** on disk, freed */
  bytes: number;
}

/**
 * When reclaim runs: beside everything else, a while after something went, and when somebody asks for it. One run at a time.
 *
 *     soon() -> (quiet for a while) -> a run over the layers that were named meanwhile
 *     now()  ----------------------->  a run over all layers
 */
export class Reclaimer {
  readonly figures: ReclaimFigures = { runs: 0, failures: 0, bytes: 0 };
  /** Hears of each run that freed something. */
  onReclaimed: (result: Reclaimed) => void = () => undefined;
  readonly #host: ReclaimHost;
  readonly #turns = new Turns();
  readonly #closing = new AbortController();
  /** Layers to look at when it is quiet. */
  #waiting = new Set<string>();
  #background: Promise<void> | undefined;
  /** Said already in the background, where nobody waits for an answer. */
  readonly #told = new Set<string>();

  constructor(host: ReclaimHost) {
    this.#host = host;
  }

  /** Something that referred to these layers is gone. */
  soon(layers: Iterable<string>): void {
    for (const layer of layers) this.#waiting.add(layer);
    if (this.#waiting.size === 0 || this.#closing.signal.aborted) return;
    this.#background ??= this.#runWaiting().finally(() => (this.#background = undefined));
  }

  async #runWaiting(): Promise<void> {
    const { signal } = this.#closing;
    const { env } = this.#host;
    while (this.#waiting.size > 0 && !signal.aborted) {
      try {
        await env.clock.sleep(quietMs, signal);
        const layers = this.#waiting;
        this.#waiting = new Set();
        const { reasons } = await this.#run({ layers, signal });
        for (const reason of reasons) this.#tellOnce(`unused blocks of some layers stay: ${reason}`);
      } catch (error) {
        if (!signal.aborted) this.#tellOnce(`unused blocks stay for now: ${describeError(error)}`);
      }
    }
  }

  #tellOnce(message: string): void {
    if (this.#told.has(message)) return;
    if (this.#told.size < 1000) this.#told.add(message);
    this.#host.env.log("warn", message);
  }

  /** Looks at all layers. @throws what `reclaim` throws */
  now(options: Omit<ReclaimOptions, "layers">): Promise<Reclaimed> {
    const signal = AbortSignal.any([options.signal, this.#closing.signal]);
    return this.#run({ ...options, signal });
  }

  #run(options: ReclaimOptions): Promise<Reclaimed> {
    return this.#turns.run(async () => {
      options.signal.throwIfAborted();
      try {
        const result = await reclaim(this.#host, options);
        this.figures.runs++;
        this.figures.bytes += result.bytes;
        if (result.bytes > 0) this.onReclaimed(result);
        return result;
      } catch (error) {
        if (!options.signal.aborted) this.figures.failures++;
        throw error;
      }
    });
  }

  /** Ends what runs; an interrupted run is repeated when something goes again, or when somebody asks. */
  async close(): Promise<void> {
    this.#closing.abort(new UllageError("stopping", "Ullage is being stopped"));
    await this.#background;
    await this.#turns.run(() => Promise.resolve());
  }
}
