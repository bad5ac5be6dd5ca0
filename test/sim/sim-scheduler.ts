import type { Clock } from "../../src/base/clock.ts";
import { Random } from "./random.ts";

/**
 * Decides what happens next. Everything in the simulated world that completes "later" (a call in the thread pool, a
 * client's next request) is a task here, and the seed picks which runs first; promise continuations run natively and to
 * the end between two tasks, so that one seed replays one schedule. Virtual time stands still while a task can run,
 * then jumps to the next timer.
 */
export class SimScheduler {
  readonly random: Random;
  readonly clock: Clock;
  /** Tasks run so far. */
  steps = 0;
  /** What has this in its label comes late, mostly: races are lost that an even choice would hardly ever lose. */
  slow: string | undefined;
  /** How often something else is picked in its place. */
  slowness = 1;
  #ready: Task[] = [];
  #timers: Timer[] = [];
  #timerCount = 0;
  #now = 0;
  #halted = false;

  constructor(seed: number) {
    this.random = new Random(seed);
    this.clock = {
      now: () => this.#now,
      wallTime: () => new Date(Date.UTC(2026, 0, 1) + this.#now).toISOString(),
      sleep: (ms, signal) => this.#sleep(ms, signal),
    };
  }

  /** @param label for the report of a stall */
  add(label: string, run: () => void): void {
    this.#ready.push({ label, run });
  }

  /** Stops `run` before the next task: the machine or the process has just died. */
  halt(): void {
    this.#halted = true;
  }

  /** A new process starts: whatever the old one waited for never comes. */
  reset(): void {
    this.#ready = [];
    this.#timers = [];
    this.#halted = false;
  }

  /** Runs tasks until the promise settles (its result is for the caller to look at) or `halt` is called. */
  async run(promise: Promise<unknown>): Promise<"settled" | "halted"> {
    let settled = false;
    const note = (): void => {
      settled = true;
    };
    promise.then(note, note);
    await new Promise<void>((resolve, reject) => {
      // A tick started from a microtask runs when no microtask is left: all that the last task set off has happened.
      const afterMicrotasks = (): void => queueMicrotask(() => process.nextTick(step));
      let idle = 0;
      let turns = 0;
      const step = (): void => {
        try {
          if (settled || this.#halted) return resolve();
          if (++turns > maxTurns)
            throw new Error(`no end after ${maxTurns} turns; runnable: ${this.runnable().join(", ")}`);
          if (this.#ready.length > 0) {
            idle = 0;
            this.#runOne();
            // Code under test may yield with setImmediate: let it, at fixed steps.
            if (this.steps % 64 === 0) setImmediate(afterMicrotasks);
            else afterMicrotasks();
          } else if (idle++ < 3) setImmediate(afterMicrotasks);
          else if (this.#fireTimer()) {
            idle = 0;
            afterMicrotasks();
          } else reject(new Error("stalled: nothing is runnable and no timer is set, but the operation has not ended"));
        } catch (error) {
          reject(error);
        }
      };
      afterMicrotasks();
    });
    return this.#halted ? "halted" : "settled";
  }

  /** Runs tasks and timers until `promise` settles, and returns or throws what it gives. Halting is an error. */
  async complete<T>(promise: Promise<T>): Promise<T> {
    promise.catch(() => {});
    if ((await this.run(promise)) === "halted") throw new Error("halted while waiting");
    return promise;
  }

  /** Resolves at a moment the seed picks. */
  pause(label: string): Promise<void> {
    return new Promise((resolve) => this.add(label, resolve));
  }

  /** Labels of what could run now. */
  runnable(): string[] {
    return this.#ready.map((task) => task.label);
  }

  #runOne(): void {
    let index = this.random.below(this.#ready.length);
    for (let again = this.slowness; again > 0 && this.#comesLate(this.#ready[index]); again--) {
      index = this.random.below(this.#ready.length);
    }
    const task = this.#ready[index];
    const last = this.#ready.pop()!;
    if (task !== last) this.#ready[index] = last;
    this.steps++;
    task.run();
  }

  #comesLate({ label }: Task): boolean {
    if (this.slow === undefined || !label.includes(this.slow)) return false;
    return this.random.chance(this.slowness > 1 ? 0.99 : 0.9);
  }

  #fireTimer(): boolean {
    let next: Timer | undefined;
    for (const timer of this.#timers) {
      if (!next || timer.due < next.due || (timer.due === next.due && timer.order < next.order)) next = timer;
    }
    if (!next) return false;
    this.#timers.splice(this.#timers.indexOf(next), 1);
    this.#now = Math.max(this.#now, next.due);
    next.fire();
    return true;
  }

  #sleep(ms: number, signal: AbortSignal | undefined): Promise<void> {
    return new Promise((resolve, reject) => {
      const fail = (): void => reject(signal!.reason as Error);
      if (signal?.aborted) return fail();
      const timer: Timer = {
        due: this.#now + ms,
        order: this.#timerCount++,
        fire: () => {
          signal?.removeEventListener("abort", onAbort);
          resolve();
        },
      };
      const onAbort = (): void => {
        const index = this.#timers.indexOf(timer);
        if (index >= 0) this.#timers.splice(index, 1);
        fail();
      };
      signal?.addEventListener("abort", onAbort, { once: true });
      this.#timers.push(timer);
    });
  }
}

/** Far more than any operation takes: something runs in circles. */
const maxTurns = 200_000;

interface Task {
  label: string;
  run(): void;
}

interface Timer {
  due: number;
  order: number;
  fire(): void;
}
