import { UllageError } from "../../base/errors.ts";
import { checkName } from "../../catalog/names.ts";
import type { ExportRecord, MetadataStore } from "../../catalog/metadata-store.ts";
import type { VolumeEnvironment } from "../../volume/types.ts";
import { demandSameRequest, type RequestKey } from "../request-key.ts";
import { Turns } from "../turns.ts";
import type { AddExportRequest } from "../views.ts";

/** All of them are in memory, and in every list. */
export const maxExports = 10_000;

/** Where the names of volumes and snapshots are looked up. Each throws UllageError `not-found`, `creating`, `bad-name`. */
export interface ExportTargets {
  /** @param target `VOL` or `VOL@SNAP`, complete */
  idsOf(target: string): { volumeId: string; snapshotId: string | null };
  /** Whether a volume has the name, one that is being made included. */
  isVolume(name: string): boolean;
}

/**
 * Further names under which volumes and snapshots are exported. They name what they stand for by its id, so that they
 * follow a rename. A name belongs to a volume or to an export: who wants one looks at both and takes it in memory within one
 * turn of the event loop, and only then waits for the catalog.
 *
 *     add      name taken -> row -> answered
 *     remove   row gone -> name free -> answered
 *
 * A volume or snapshot that goes takes its exports along after its own row says so and before that row goes; what a crash
 * leaves between the two goes at the next start (durability rule 17).
 */
export class Exports {
  readonly #env: Pick<VolumeEnvironment, "clock" | "randomBytes">;
  readonly #store: MetadataStore;
  readonly #targets: ExportTargets;
  readonly #byName = new Map<string, ExportRecord>();
  /** The name that is being added. */
  #coming: string | undefined;
  readonly #turns = new Turns();

  /** @param rows of what is there: see `sweepAtStart` */
  constructor(
    host: { env: Pick<VolumeEnvironment, "clock" | "randomBytes">; store: MetadataStore },
    rows: readonly ExportRecord[],
    targets: ExportTargets,
  ) {
    this.#env = host.env;
    this.#store = host.store;
    this.#targets = targets;
    for (const row of rows) this.#byName.set(row.name, row);
  }

  all(): ExportRecord[] {
    return [...this.#byName.values()];
  }

  find(name: string): ExportRecord | undefined {
    return this.#byName.get(name);
  }

  /** Whether a volume can't have the name. */
  holds(name: string): boolean {
    return this.#coming === name || this.#byName.has(name);
  }

  /**
   * Durable when it resolves.
   * @throws UllageError `bad-name`, `name-taken`, `not-found`, `creating`, `request-key-reused`, `export-limit`
   */
  add(request: AddExportRequest, requestKey?: RequestKey): Promise<ExportRecord> {
    return this.#turns.run(async () => {
      const before = this.#earlier(requestKey);
      if (before !== undefined) return before;
      const { name, target, readOnly = false, description = null } = request;
      checkName(name);
      if (this.#targets.isVolume(name)) throw taken(`there is a volume '${name}' already`);
      if (this.#byName.has(name)) throw taken(`there is an export '${name}' already`);
      if (this.#byName.size >= maxExports) {
        throw new UllageError("export-limit", `there are ${maxExports} exports already`, {
          hint: "remove some: volumes and snapshots are exports under their own names anyway",
        });
      }
      const row: ExportRecord = {
        id: this.#env.randomBytes(16).toString("hex"),
        name,
        ...this.#targets.idsOf(target),
        options: { readOnly, description },
        createdAt: this.#env.clock.wallTime(),
        requestKey: requestKey?.key ?? null,
        requestDigest: requestKey?.digest ?? null,
      };
      this.#coming = name;
      try {
        await this.#store.insertExport(row);
        this.#byName.set(name, row);
      } finally {
        this.#coming = undefined;
      }
      return row;
    });
  }

  #earlier(requestKey: RequestKey | undefined): ExportRecord | undefined {
    if (requestKey === undefined) return undefined;
    const before = this.all().find((row) => row.requestKey === requestKey.key);
    if (before !== undefined) demandSameRequest(requestKey, before.requestDigest);
    return before;
  }

  /** Nobody new comes in under the name; connections that are open stay. @throws UllageError `not-found` */
  remove(name: string): Promise<void> {
    return this.#turns.run(async () => {
      const row = this.#byName.get(name);
      if (row === undefined) {
        throw new UllageError("not-found", `there is no export '${name}'`, { hint: "`ullage export ls` lists them" });
      }
      await this.#delete(row);
    });
  }

  /** A volume or a snapshot is not there any more: its exports go. @param id of the volume or the snapshot */
  targetGone(id: string): Promise<void> {
    return this.#turns.run(async () => {
      for (const row of this.all()) if (row.volumeId === id || row.snapshotId === id) await this.#delete(row);
    });
  }

  async #delete(row: ExportRecord): Promise<void> {
    await this.#store.deleteExport(row.id);
    this.#byName.delete(row.name);
  }
}

function taken(message: string): UllageError {
  return new UllageError("name-taken", message, { hint: "choose another name" });
}
