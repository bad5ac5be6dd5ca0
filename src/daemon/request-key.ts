import { UllageError } from "../base/errors.ts";

/** What recognises a repeated request. */
export interface RequestKey {
  key: string;
  /** of the request's content */
  digest: string;
}

/** @param digest of the request that the key was first seen with @throws UllageError `request-key-reused` */
export function demandSameRequest({ key, digest }: RequestKey, before: string | null): void {
  if (before === digest) return;
  throw new UllageError("request-key-reused", `the key '${key}' belongs to another request`, {
    hint: "use a new Idempotency-Key for a new request",
  });
}

/** What was made by a request, or is being made. */
interface Made<T> {
  digest: string | null;
  made: Promise<T>;
}

/** Things that are made once per key: who repeats a request while it is under way, or later, gets what the first one got. */
export class MadeOnce<T> {
  readonly #underWay = new Map<string, Made<T>>();
  readonly #find: (key: string) => { digest: string | null; thing: T } | undefined;

  /** @param find what is there already */
  constructor(find: (key: string) => { digest: string | null; thing: T } | undefined) {
    this.#find = find;
  }

  /** @throws UllageError `request-key-reused`, and whatever `make` throws */
  async make(requestKey: RequestKey | undefined, make: () => Promise<T>): Promise<T> {
    if (requestKey === undefined) return make();
    const before = this.#before(requestKey.key);
    if (before !== undefined) {
      demandSameRequest(requestKey, before.digest);
      return before.made;
    }
    const made = make();
    this.#underWay.set(requestKey.key, { digest: requestKey.digest, made });
    try {
      return await made;
    } finally {
      this.#underWay.delete(requestKey.key);
    }
  }

  #before(key: string): Made<T> | undefined {
    const underWay = this.#underWay.get(key);
    if (underWay !== undefined) return underWay;
    const found = this.#find(key);
    return found === undefined ? undefined : { digest: found.digest, made: Promise.resolve(found.thing) };
  }
}
