/*
 * Work that is repeated while somebody looks:
 *
 *     due ....... runs when its time has come, when it is poked or hinted, or when the page is shown again
 *     running ... never twice at once; a poke while it runs makes it due again right after
 *     hidden .... nothing runs
 *     held ...... nothing runs: what is being asked about is on its way out
 *
 * The pause is never shorter than ten times what the work took, so that a page on a large server asks less often, and
 * doubles with every failure.
 */

const maxPauseMs = 30_000;
const hintPauseMs = 500;
const workShare = 10;

/** @type {Set<Poller>} those that are not stopped */
const pollers = new Set();
let holds = 0;

/**
 * Does something during which nothing is asked for: what is being removed has no answer. What runs already goes on.
 * @template T
 * @param {() => Promise<T>} work
 * @returns {Promise<T>}
 */
export async function withoutPolling(work) {
  holds++;
  try {
    return await work();
  } finally {
    holds--;
    if (holds === 0) for (const poller of pollers) poller.resume();
  }
}

export class Poller {
  /** @type {() => Promise<unknown>} */
  #work;
  /** @type {() => number} */
  #pauseMs;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  #running = false;
  #poked = false;
  #stopped = false;
  #failures = 0;
  /** when the last run ended, and when the next begins */
  #ended = 0;
  #next = 0;
  #tookMs = 0;
  #onVisible = () => {
    if (!document.hidden) this.poke();
  };

  /**
   * @param {() => Promise<unknown>} work a rejection counts as a failure; showing it is the work's own business
   * @param {() => number} pauseMs how long to wait at least after the work is done
   */
  constructor(work, pauseMs) {
    this.#work = work;
    this.#pauseMs = pauseMs;
    document.addEventListener("visibilitychange", this.#onVisible);
    pollers.add(this);
    void this.#run();
  }

  /** Does it now, or as soon as what runs has ended. */
  poke() {
    if (this.#running) this.#poked = true;
    else void this.#run();
  }

  /** Something may have changed: does it soon, though not more often than its cost allows. */
  hint() {
    if (this.#running || this.#failures > 0) return;
    const due = this.#ended + Math.max(hintPauseMs, workShare * this.#tookMs);
    this.#schedule(Math.max(0, Math.min(due, this.#next) - performance.now()));
  }

  /** It was held: does what may be due, when the page has had time to leave what is gone. */
  resume() {
    if (!this.#running) this.#schedule(hintPauseMs);
  }

  stop() {
    this.#stopped = true;
    pollers.delete(this);
    clearTimeout(this.#timer);
    document.removeEventListener("visibilitychange", this.#onVisible);
  }

  async #run() {
    clearTimeout(this.#timer);
    if (this.#stopped || document.hidden || holds > 0) return;
    this.#running = true;
    this.#poked = false;
    const began = performance.now();
    try {
      await this.#work();
      this.#failures = 0;
    } catch {
      this.#failures++;
    }
    this.#running = false;
    if (this.#stopped) return;
    this.#ended = performance.now();
    this.#tookMs = this.#ended - began;
    const pause = Math.max(this.#pauseMs(), workShare * this.#tookMs) * 2 ** Math.min(this.#failures, 5);
    this.#schedule(this.#poked && this.#failures === 0 ? 0 : Math.min(maxPauseMs, pause));
  }

  /** @param {number} ms */
  #schedule(ms) {
    clearTimeout(this.#timer);
    this.#next = performance.now() + ms;
    this.#timer = setTimeout(() => void this.#run(), ms);
  }
}
