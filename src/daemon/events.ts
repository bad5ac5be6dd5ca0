import { withoutSecrets } from "../base/without-secrets.ts";
import type { Warning } from "./health/health.ts";
import type { JobView } from "./jobs.ts";
import type { Log } from "./log.ts";
import type { ConnectionView, ExportView, ReclaimView, SnapshotView, VolumeView } from "./views.ts";

/**
 * What happened, with the object as it is afterwards. A volume is told of from the moment that lists have it until they
 * don't: one that is being made is `volume-created` in state `creating`, and `volume-removed` when that fails.
 */
export type UllageEvent =
  | { name: "volume-created" | "volume-changed" | "volume-removed" | "hydration"; data: VolumeView }
  | { name: "snapshot-created" | "snapshot-removed"; data: SnapshotView }
  | { name: "export-added" | "export-removed"; data: ExportView }
  | { name: "connection-opened" | "connection-closed"; data: ConnectionEventView }
  | { name: "job"; data: JobView }
  | { name: "space-reclaimed"; data: ReclaimView }
  | { name: "warning"; data: Warning };

/** A connection that came or went. */
export interface ConnectionEventView {
  /** name of the export: that of a volume, or `VOL@SNAP` */
  export: string;
  connection: ConnectionView;
}

/** Whoever falls further behind has missed some. */
const keptEvents = 2000;

/**
 * The newest events, numbered from 0 on. Readers keep a position of their own and read from there when they can, so a slow
 * one costs nothing but the place that it will find overwritten.
 *
 *     ..... [first ............... end)      published before `first`: forgotten; `end`: the next one
 */
export class Events {
  #kept: UllageEvent[] = [];
  #first = 0;
  readonly #capacity: number;
  readonly #listeners = new Set<() => void>();
  #closed = false;

  constructor(capacity = keptEvents) {
    this.#capacity = capacity;
  }

  /** Position of the oldest event that is still there. */
  get first(): number {
    return this.#first;
  }

  /** Position that the next event will have. */
  get end(): number {
    return this.#first + this.#kept.length;
  }

  /** Nothing will happen any more. */
  get closed(): boolean {
    return this.#closed;
  }

  publish(event: UllageEvent): void {
    if (this.#closed) return;
    this.#kept.push(event);
    // Dropped in lots, so that publishing costs about the same however many are kept.
    const tooMany = this.#kept.length - this.#capacity;
    if (tooMany >= this.#capacity / 8) {
      this.#kept.splice(0, tooMany);
      this.#first += tooMany;
    }
    this.#tell();
  }

  /** The events from `position` on, at most `limit`. @param position from `first` to `end` */
  read(position: number, limit: number): UllageEvent[] {
    const from = position - this.#first;
    if (from < 0 || from > this.#kept.length) throw new RangeError(`no event ${position}`);
    return this.#kept.slice(from, from + limit);
  }

  /** `listener` hears that there is something to read, or that nothing will come any more. @returns what ends it */
  onPublish(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#tell();
  }

  #tell(): void {
    for (const listener of this.#listeners) listener();
  }
}

/** A log that tells listeners of its warnings and errors as well. */
export function tellWarnings(events: Events, log: Log): Log {
  return (level, message, fields) => {
    log(level, message, fields);
    if (level !== "warn" && level !== "error") return;
    events.publish({ name: "warning", data: { code: fields?.code ?? level, message: withoutSecrets(message) } });
  };
}
