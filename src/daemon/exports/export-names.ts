import type { ComparableSnapshots, ExportDirectory, ExportEntry, ExportLookup } from "../../export/block-device.ts";
import { describeError } from "../../base/errors.ts";
import { formatSize } from "../../base/units.ts";
import { shownSource } from "../../base/without-secrets.ts";
import type { ExportRecord, SnapshotRecord } from "../../catalog/metadata-store.ts";
import type { ManagedVolume } from "../volumes/managed-volume.ts";
import type { SnapshotView } from "../../volume/snapshot-view.ts";
import type { Volume } from "../../volume/volume.ts";
import type { Exports } from "./exports.ts";
import type { Snapshots } from "../snapshots/snapshots.ts";

/** What the names of exports are looked up in. */
export interface VolumeNames {
  readonly snapshots: Snapshots;
  readonly exports: Exports;
  byName(name: string): ManagedVolume | undefined;
  byId(id: string): ManagedVolume | undefined;
  /** Those that are being made or removed left out. */
  ready(): ManagedVolume[];
}

/** A name, and what is behind it. */
export interface NamedExport {
  name: string;
  volume: ManagedVolume;
  snapshot: (SnapshotRecord & { name: string }) | undefined;
  /** undefined: it is the own name of a volume or a snapshot */
  added: ExportRecord | undefined;
  readOnly: boolean;
}

/**
 * Volumes and snapshots as exports, on every listener, as soon as they are ready:
 *
 *     web1           the volume of that name
 *     web1@monday    its snapshot, read-only
 *     boot           a further name of either, added by a user
 *     5b0f…          a volume's id, 32 hex digits, which outlives a rename; also before '@'. Not listed
 *     (nothing)      the only volume when there is exactly one
 *
 * Names go before ids. Looking a name up opens the volume.
 */
export class ExportNames implements ExportDirectory {
  readonly #names: VolumeNames;
  readonly #readOnly: boolean;

  constructor(names: VolumeNames, readOnly: boolean) {
    this.#names = names;
    this.#readOnly = readOnly;
  }

  /** Ordered by name. */
  all(): NamedExport[] {
    return sorted([...this.#names.ready().flatMap((volume) => this.#ownNames(volume)), ...this.#added()]);
  }

  /** Those of a volume and its snapshots, ordered by name. */
  of(volume: ManagedVolume): NamedExport[] {
    const own = volume.record.state === "ready" ? this.#ownNames(volume) : [];
    return sorted([...own, ...this.#added().filter((added) => added.volume === volume)]);
  }

  /** One that is listed. */
  find(name: string): NamedExport | undefined {
    const added = this.#names.exports.find(name);
    if (added !== undefined) return this.behind(added);
    const volume = this.#names.byName(name.split("@")[0]);
    return volume === undefined ? undefined : this.of(volume).find((found) => found.name === name);
  }

  #ownNames(volume: ManagedVolume): NamedExport[] {
    const { id, name } = volume.record;
    return [
      { name, volume, snapshot: undefined, added: undefined, readOnly: this.#readOnly },
      ...this.#names.snapshots.of(id).map((snapshot) => {
        return { name: `${name}@${snapshot.name}`, volume, snapshot, added: undefined, readOnly: true };
      }),
    ];
  }

  #added(): NamedExport[] {
    return this.#names.exports.all().flatMap((row) => this.behind(row) ?? []);
  }

  /** @returns undefined while what the export stands for is being removed */
  behind(added: ExportRecord): NamedExport | undefined {
    const { name, volumeId, snapshotId, options } = added;
    const volume = this.#names.byId(volumeId);
    if (volume?.record.state !== "ready") return undefined;
    if (snapshotId === null)
      return { name, volume, snapshot: undefined, added, readOnly: this.#readOnly || options.readOnly };
    const snapshot = this.#names.snapshots.of(volumeId).find(({ id }) => id === snapshotId);
    return snapshot === undefined ? undefined : { name, volume, snapshot, added, readOnly: true };
  }

  list(): ExportEntry[] {
    return this.all().map((found) => ({ name: found.name, description: describe(found) }));
  }

  /** The volume that an export is about. @param name as `lookup` told it */
  volumeOf(name: string): ManagedVolume | undefined {
    const added = this.#names.exports.find(name);
    return added === undefined ? this.#volumeNamed(name.split("@")[0]) : this.#names.byId(added.volumeId);
  }

  async lookup(name: string): Promise<ExportLookup> {
    const added = this.#names.exports.find(name);
    if (added !== undefined) {
      const found = this.behind(added);
      if (found === undefined) return { kind: "none", reason: `what '${name}' stands for is being removed` };
      const { volume, snapshot, readOnly } = found;
      return snapshot === undefined
        ? this.#openVolume(volume, name, readOnly)
        : this.#openSnapshot(volume, snapshot.name, name);
    }
    const at = name.indexOf("@");
    const volumeName = at < 0 ? name : name.slice(0, at);
    const volume = volumeName === "" && at < 0 ? this.#only() : this.#volumeNamed(volumeName);
    if (volume === undefined) return { kind: "none", reason: this.#whyNone(volumeName) };
    const { name: own, state } = volume.record;
    if (state !== "ready") return { kind: "none", reason: `'${own}' is ${state}` };
    if (at < 0) return this.#openVolume(volume, own, this.#readOnly);
    const snapshotName = name.slice(at + 1);
    return this.#openSnapshot(volume, snapshotName, `${own}@${snapshotName}`);
  }

  #volumeNamed(name: string): ManagedVolume | undefined {
    return this.#names.byName(name) ?? this.#names.byId(name);
  }

  async #openVolume(volume: ManagedVolume, name: string, readOnly: boolean): Promise<ExportLookup> {
    try {
      const device = await volume.deviceForReader();
      return { kind: "device", name, device, readOnly, snapshots: this.#comparable(volume, device) };
    } catch (error) {
      return { kind: "none", reason: `'${volume.record.name}' can't be opened: ${describeError(error)}` };
    }
  }

  async #openSnapshot(volume: ManagedVolume, snapshot: string, name: string): Promise<ExportLookup> {
    try {
      const device = await this.#names.snapshots.view(this.#names.snapshots.get(volume, snapshot));
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

function sorted(found: NamedExport[]): NamedExport[] {
  return found.sort((a, b) => (a.name < b.name ? -1 : 1));
}

/** For clients that list names. */
function describe({ volume, snapshot, added, readOnly }: NamedExport): string {
  const { name, size, source } = volume.record;
  const text = formatSize(snapshot?.size ?? size);
  if (added !== undefined) {
    const { description } = added.options;
    const target = snapshot === undefined ? name : `${name}@${snapshot.name}`;
    const notes = [`'${target}'`, ...(readOnly ? ["read-only"] : []), ...(description === null ? [] : [description])];
    return `${text}, ${notes.join(", ")}`;
  }
  if (snapshot !== undefined) return `${text}, snapshot of ${snapshot.createdAt}`;
  return `${text}${source === null ? "" : ` from ${shownSource(source)}`}`;
}
