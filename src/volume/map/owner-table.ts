import { CorruptionError, UllageError } from "../../base/errors.ts";
import { maxOwner } from "./owner-map.ts";

/** What a small owner id of one map stands for. */
export interface Owner {
  kind: "layer" | "blob";
  /** 32 hex digits */
  id: string;
}

/** How the two kinds are written in files. */
export const ownerKinds = { layer: 1, blob: 2 } as const;

/** @throws CorruptionError */
export function ownerKindOf(code: number, path: string): Owner["kind"] {
  if (code === ownerKinds.layer) return "layer";
  if (code === ownerKinds.blob) return "blob";
  throw new CorruptionError(`${path} has an owner of unknown kind ${code}`);
}

/** The owner table of a volume: small id -> layer or blob. 0 (zeros) is not in it. */
export class OwnerTable {
  readonly #owners = new Map<number, Owner>();

  put(id: number, owner: Owner): void {
    if (!(id > 0 && id <= maxOwner)) throw new RangeError(`owner id ${id} is out of range`);
    this.#owners.set(id, owner);
  }

  /** Adds an owner under a free id. @throws `owners-exhausted` */
  add(owner: Owner): number {
    const id = this.free();
    this.#owners.set(id, owner);
    return id;
  }

  /** An id that stands for nothing. @throws `owners-exhausted` */
  free(): number {
    for (let id = 1; id <= maxOwner; id++) if (!this.#owners.has(id)) return id;
    throw new UllageError("owners-exhausted", `the volume refers to ${maxOwner} layers and blobs, the most it can`);
  }

  /** A copy, which later changes do not reach, of the owners that `wanted` picks. */
  only(wanted: (id: number, owner: Owner) => boolean): OwnerTable {
    const copy = new OwnerTable();
    for (const [id, owner] of this.#owners) if (wanted(id, owner)) copy.#owners.set(id, owner);
    return copy;
  }

  copy(): OwnerTable {
    return this.only(() => true);
  }

  /** The id is free again (durability rule 18: only when no map and no log that still counts mentions it). */
  remove(id: number): void {
    this.#owners.delete(id);
  }

  get(id: number): Owner | undefined {
    return this.#owners.get(id);
  }

  has(id: number): boolean {
    return this.#owners.has(id);
  }

  entries(): IterableIterator<[number, Owner]> {
    return this.#owners.entries();
  }
}
