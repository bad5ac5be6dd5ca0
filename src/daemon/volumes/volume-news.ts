import type { Clock } from "../../base/clock.ts";
import type { Events } from "../events.ts";
import type { VolumeView } from "../views.ts";

type VolumeEventName = "volume-created" | "volume-changed" | "volume-removed" | "hydration";

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
  /** The same with its progress. */
  #toldWhole = "";
  #toldAt = -Infinity;
  #seen: VolumeView | undefined;
  #waiting = false;

  /** @param view of the volume as it is now */
  constructor(events: Events, clock: Clock, view: () => VolumeView) {
    this.#events = events;
    this.#clock = clock;
    this.#view = view;
  }

  created(): void {
    this.#tell("volume-created");
  }

  removed(): void {
    this.#tell("volume-removed");
    this.#state = "gone";
  }

  changed(): void {
    if (this.#state === "gone" || this.#waiting) return;
    const view = this.#look();
    if (view === undefined) return;
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

  /** More of it may be there. */
  progress(): void {
    if (this.#state === "gone" || this.#clock.now() - this.#toldAt < progressIntervalMs) return;
    const view = this.#look();
    if (view !== undefined && JSON.stringify(view) !== this.#toldWhole) this.#publish("hydration", view);
  }

  #tell(name: VolumeEventName): void {
    const view = this.#look();
    if (view !== undefined) this.#publish(name, view);
  }

  /** When a volume can't be looked at, it is what it was the last time; whoever asks for it meets the failure. */
  #look(): VolumeView | undefined {
    try {
      this.#seen = this.#view();
    } catch {
      return this.#seen;
    }
    return this.#seen;
  }

  #publish(name: VolumeEventName, view: VolumeView): void {
    this.#state = "told";
    this.#told = withoutProgress(view);
    this.#toldWhole = JSON.stringify(view);
    this.#toldAt = this.#clock.now();
    this.#events.publish({ name, data: view });
  }
}

function withoutProgress(view: VolumeView): string {
  const { state, reason, damagedBytes, limitBytesPerSecond, priority } = view.hydration;
  const hydration = { state, reason, damagedBytes, limitBytesPerSecond, priority };
  return JSON.stringify({ ...view, fetchedBytes: 0, writtenBytes: 0, hydration });
}
