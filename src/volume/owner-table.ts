import { UllageError } from "../base/errors.ts";
import { maxOwner } from "./owner-map.ts";

/** What a small owner id of one map stands for. */
export interface Owner {
  kind: "layer" | "blob";
  /** 32 hex digits */
  id: string;
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
    for (let id = 1; id <= maxOwner; id++) {
      if (this.#owners.has(id)) continue;
      this.#owners.set(id, owner);
      return id;
    }
    throw new UllageError("owners-exhausted", `the volume refers to ${maxOwner} layers and blobs, the most it can`);
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
