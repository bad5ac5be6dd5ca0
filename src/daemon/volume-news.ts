import type { Clock } from "../base/clock.ts";
import type { Events } from "./events.ts";
import type { VolumeView } from "./views.ts";

/** Between two events about changes of one volume; what changes meanwhile is told together. */
const changeIntervalMs = 100;
/** Between two events about the progress of one volume. */
const progressIntervalMs = 500;

/**
 * Publishes what happens to one volume. `changed` may be called whenever something might have changed: it tells of it only
 * if it has, at once, or a moment later when the last event is a moment ago.
 */
export class VolumeNews {
  readonly #events: Events;
  readonly #clock: Clock;
  readonly #view: () => VolumeView;
  #state: "unknown" | "told" | "gone" = "unknown";
  /** What the last event said, progress left out. */
  #told = "";
  #toldAt = -Infinity;
  #waiting = false;

  /** @param view of the volume as it is now */
  constructor(events: Events, clock: Clock, view: () => VolumeView) {
    this.#events = events;
    this.#clock = clock;
    this.#view = view;
  }

  created(): void {
    this.#publish("volume-created", this.#view());
  }

  removed(): void {
    this.#publish("volume-removed", this.#view());
    this.#state = "gone";
  }

  changed(): void {
    if (this.#state === "gone" || this.#waiting) return;
    const view = this.#view();
    if (this.#state === "told" && withoutProgress(view) === this.#told) return;
    const waitMs = this.#toldAt + changeIntervalMs - this.#clock.now();
    if (waitMs <= 0) this.#publish("volume-changed", view);
    else void this.#changedIn(waitMs);
  }

  async #changedIn(ms: number): Promise<void> {
    this.#waiting = true;
    await this.#clock.sleep(ms);
    this.#waiting = false;
    this.changed();
  }

  /** More of it is there. */
  progress(): void {
    if (this.#state === "gone" || this.#clock.now() - this.#toldAt < progressIntervalMs) return;
    this.#publish("hydration", this.#view());
  }

  #publish(name: "volume-created" | "volume-changed" | "volume-removed" | "hydration", view: VolumeView): void {
    this.#state = "told";
    this.#told = withoutProgress(view);
    this.#toldAt = this.#clock.now();
    this.#events.publish({ name, data: view });
  }
}

function withoutProgress(view: VolumeView): string {
  const { state, reason, limitBytesPerSecond, priority } = view.hydration;
  const hydration = { state, reason, limitBytesPerSecond, priority };
  return JSON.stringify({ ...view, fetchedBytes: 0, writtenBytes: 0, hydration });
}
