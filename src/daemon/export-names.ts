import type { ComparableSnapshots, ExportDirectory, ExportEntry, ExportLookup } from "../export/block-device.ts";
import { describeError } from "../base/errors.ts";
import { formatSize } from "../base/units.ts";
import type { ManagedVolume } from "./managed-volume.ts";
import type { SnapshotView } from "../volume/snapshot-view.ts";
import type { Volume } from "../volume/volume.ts";
import type { Snapshots } from "./snapshots.ts";

/** What the names of exports are looked up in. */
export interface VolumeNames {
  readonly snapshots: Snapshots;
  byName(name: string): ManagedVolume | undefined;
  /** Those that are being made or removed left out. */
  ready(): ManagedVolume[];
}

/**
 * Volumes as exports: every name is an export on every listener as soon as the volume is ready, and the empty name is the
 * only volume when there is exactly one. Looking a name up opens the volume. `VOL@SNAP` is a snapshot, read-only.
 */
export class ExportNames implements ExportDirectory {
  readonly #names: VolumeNames;
  readonly #readOnly: boolean;

  constructor(names: VolumeNames, readOnly: boolean) {
    this.#names = names;
    this.#readOnly = readOnly;
  }

  list(): ExportEntry[] {
    return this.#names.ready().flatMap(({ record }) => [
      {
        name: record.name,
        description: `${formatSize(record.size)}${record.source === null ? "" : ` from ${record.source}`}`,
      },
      ...this.#names.snapshots.of(record.id).map(({ name, size, createdAt }) => ({
        name: `${record.name}@${name}`,
        description: `${formatSize(size)}, snapshot of ${createdAt}`,
      })),
    ]);
  }

  async lookup(name: string): Promise<ExportLookup> {
    if (name.includes("@")) return this.#lookupSnapshot(name);
    const volume = name === "" ? this.#only() : this.#names.byName(name);
    if (volume === undefined) return { kind: "none", reason: this.#whyNone(name) };
    if (volume.record.state !== "ready")
      return { kind: "none", reason: `'${volume.record.name}' is ${volume.record.state}` };
    try {
      const device = await volume.deviceForReader();
      const { name: found } = volume.record;
      return {
        kind: "device",
        name: found,
        device,
        readOnly: this.#readOnly,
        snapshots: this.#comparable(volume, device),
      };
    } catch (error) {
      return { kind: "none", reason: `'${volume.record.name}' can't be opened: ${describeError(error)}` };
    }
  }

  async #lookupSnapshot(name: string): Promise<ExportLookup> {
    const at = name.indexOf("@");
    const volume = this.#names.byName(name.slice(0, at));
    if (volume === undefined) return { kind: "none", reason: this.#whyNone(name.slice(0, at)) };
    try {
      const device = await this.#names.snapshots.view(this.#names.snapshots.get(volume, name.slice(at + 1)));
      return { kind: "device", name, device, readOnly: true, snapshots: this.#comparable(volume, device) };
    } catch (error) {
      return { kind: "none", reason: describeError(error) };
    }
  }

  #comparable(volume: ManagedVolume, device: Volume | SnapshotView): ComparableSnapshots {
    const { snapshots } = this.#names;
    return {
      names: () => snapshots.of(volume.record.id).map(({ name }) => name),
      changesSince: async (name) => {
        const { frozen } = await snapshots.view(snapshots.get(volume, name));
        return (offset, length, limit) => device.changesSince(frozen, offset, length, limit);
      },
    };
  }

  #only(): ManagedVolume | undefined {
    const volumes = this.#names.ready();
    return volumes.length === 1 ? volumes[0] : undefined;
  }

  #whyNone(name: string): string {
    if (name !== "") return `there is no volume '${name}'`;
    const count = this.#names.ready().length;
    return count === 0 ? "there are no volumes" : `there are ${count} volumes: name one of them`;
  }
}
