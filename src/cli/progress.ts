import { formatDuration, formatSize } from "../base/units.ts";
import type { HydrationView } from "../daemon/views.ts";

const barWidth = 24;
/** Of a terminal that does not know its width. */
const plainWidth = 80;
/** Between two lines on anything but a terminal. */
const plainIntervalMs = 5000;

/** `running 42%` */
export function hydrationSummary({ state, readyBytes, totalBytes }: HydrationView): string {
  return state === "none" || state === "detached" ? state : `${state} ${percent(readyBytes, totalBytes)}`;
}

/** `[#####     ] 42%  420M of 1G  50M/s  12s left` */
export function hydrationDetail(hydration: HydrationView): string {
  const { state, reason, readyBytes, totalBytes, rateBytesPerSecond, etaSeconds } = hydration;
  if (state === "none") return "none";
  if (state === "detached") return "detached: everything is here, the source is not needed any more";
  const filled = totalBytes === 0 ? barWidth : Math.floor((readyBytes / totalBytes) * barWidth);
  const parts = [
    `[${"#".repeat(filled)}${" ".repeat(barWidth - filled)}] ${percent(readyBytes, totalBytes)}`,
    `${formatSize(readyBytes)} of ${formatSize(totalBytes)}`,
  ];
  if (state === "running") {
    parts.push(`${formatSize(Math.round(rateBytesPerSecond))}/s`);
    if (etaSeconds !== null) parts.push(`${formatDuration(etaSeconds)} left`);
  } else {
    parts.push(reason === null ? state : `${state}: ${reason}`);
  }
  return parts.join("  ");
}

function percent(part: number, whole: number): string {
  return whole === 0 ? "100%" : `${Math.floor((part / whole) * 100)}%`;
}

/** The rate shown is that of so many looks at the progress. */
const rateSamples = 10;

/** How far something is, by looking at it now and then. */
export class ProgressMeter {
  readonly #samples = [{ at: performance.now(), done: 0 }];

  /** `[#####     ] 42%  420M of 1G  50M/s  12s left`, or `420M  50M/s` when nobody knows the total */
  text(done: number, total: number | null): string {
    this.#samples.push({ at: performance.now(), done });
    if (this.#samples.length > rateSamples) this.#samples.shift();
    const [first] = this.#samples;
    const seconds = (this.#samples.at(-1)!.at - first.at) / 1000;
    const rate = seconds > 0 ? (done - first.done) / seconds : 0;
    if (total === null) return `${formatSize(done)}  ${formatSize(Math.round(rate))}/s`;
    return hydrationDetail({
      state: "running",
      reason: null,
      readyBytes: done,
      totalBytes: total,
      damagedBytes: 0,
      damaged: [],
      rateBytesPerSecond: rate,
      etaSeconds: rate > 0 ? Math.ceil((total - done) / rate) : null,
      limitBytesPerSecond: null,
      priority: 0,
    });
  }
}

/** One line that is rewritten in place on a terminal; elsewhere a new line now and then, when it changed. */
export class ProgressLine {
  readonly #out: NodeJS.WriteStream;
  #shown = "";
  #shownAt = -Infinity;

  constructor(out: NodeJS.WriteStream = process.stdout) {
    this.#out = out;
  }

  show(text: string): void {
    if (this.#out.isTTY) {
      this.#out.write(`\r\x1b[K${text.slice(0, (this.#out.columns || plainWidth) - 1)}`);
    } else if (text !== this.#shown && performance.now() - this.#shownAt >= plainIntervalMs) {
      this.#out.write(`${text}\n`);
      this.#shownAt = performance.now();
    } else {
      return;
    }
    this.#shown = text;
  }

  /** Moves to a line of its own, so that other output can follow; the last state stays visible. */
  end(last = this.#shown): void {
    if (this.#out.isTTY) {
      if (this.#shown !== "" || last !== "") this.#out.write(`\r\x1b[K${last}\n`);
    } else if (last !== this.#shown) {
      this.#out.write(`${last}\n`);
    }
    this.#shown = "";
  }
}
