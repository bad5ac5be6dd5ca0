import { isSameIdentity } from "../../backend/file/file-identity.ts";
import { SourceError, UllageError } from "../../base/errors.ts";
import { isId } from "../../base/ids.ts";
import type { Answerer, ProgressAnswer, QuestionName, Questions } from "../../blob/remote/questions.ts";
import type { BlobClaims } from "./blob-claims.ts";
import type { Sources } from "../sources/sources.ts";
import { Turns } from "../turns.ts";

interface Asking {
  trusted: boolean;
  signal: AbortSignal;
}

type Answers = {
  [Name in QuestionName]: (asked: Questions[Name]["asked"], asking: Asking) => Promise<Questions[Name]["answer"]>;
};

/** Finds, makes and gives up blobs for daemons whose cache this is. */
export class BlobService implements Answerer {
  readonly #sources: Sources;
  readonly #claims: BlobClaims;
  readonly #mayRemove: boolean;
  /** Claims and removals. */
  readonly #turns = new Turns();
  /** Of images that are fetched as a whole now, by the ids that their makers chose. */
  readonly #progress = new Map<string, ProgressAnswer>();

  /** @param options.mayRemove false: there may be volumes beside the cache that claim nothing */
  constructor(sources: Sources, claims: BlobClaims, { mayRemove }: { mayRemove: boolean }) {
    this.#sources = sources;
    this.#claims = claims;
    this.#mayRemove = mayRemove;
  }

  async answer(name: string, asked: unknown, asking: Asking): Promise<object> {
    if (!Object.hasOwn(this.#answers, name)) {
      throw new UllageError("not-supported", `this blob manager does not know '${name}'`, { hint: "is it older?" });
    }
    return (this.#answers[name as QuestionName] as (asked: unknown, asking: Asking) => Promise<object>)(asked, asking);
  }

  readonly #answers: Answers = {
    find: async ({ request, guarded }, { trusted, signal }) => {
      const found = await this.#sources.find(request, signal, { guarded: guarded || !trusted });
      await found.close();
      const { url, format, identity, size = null } = found;
      return { url, format, identity, size };
    },
    make: async ({ request, guarded, identity, volume, making }, { trusted, signal }) => {
      if (volume !== undefined) demandVolumeId(volume);
      const key = making !== undefined && isId(making) ? making : undefined;
      const found = await this.#sources.find(request, signal, { guarded: guarded || !trusted });
      if (!isSameIdentity(found.identity, identity)) {
        await found.close();
        throw new SourceError("source-changed", `${found.url} has changed just now`, {
          transient: false,
          hint: "try again",
        });
      }
      const onProgress = (done: number, total: number): void => {
        if (key !== undefined) this.#progress.set(key, { done, total });
      };
      const blob = await this.#sources.blobOf(found, { signal, onProgress }).finally(() => {
        if (key !== undefined) this.#progress.delete(key);
      });
      try {
        if (volume !== undefined) await this.#turns.run(() => this.#claims.add(blob.id, volume));
        return { meta: blob.meta };
      } finally {
        await this.#sources.cache.release(blob.id);
      }
    },
    progress: ({ making }) => Promise.resolve(this.#progress.get(making) ?? {}),
    about: async ({ blob }) => {
      const look = isId(blob) ? await this.#sources.cache.look(blob) : undefined;
      if (look === undefined) throw missing(blob);
      const { meta, readyBytes, diskBytes, usedAt, verified } = look;
      return { meta, readyBytes, diskBytes, usedAt, verified };
    },
    claim: async ({ blob, volume }) => {
      await this.#turns.run(async () => {
        demandVolumeId(volume);
        if (!this.#sources.cache.list().some(({ id }) => id === blob)) throw missing(blob);
        await this.#claims.add(blob, volume);
      });
      return {};
    },
    forget: async ({ volume, blob }) => {
      demandVolumeId(volume);
      if (blob !== null) await this.#sources.unpin(blob, volume);
      await this.#turns.run(() => this.#claims.remove(volume));
      return {};
    },
    giveUp: async ({ blob }) => {
      await this.#turns.run(async () => {
        if (!this.#mayRemove || !this.#claims.isGivenUp(blob)) return;
        await this.#sources.giveUp(blob);
        if (!this.#sources.cache.list().some(({ id }) => id === blob)) await this.#claims.forgetBlob(blob);
      });
      return {};
    },
    isPinned: async ({ blob, volume }) => {
      if (!isId(blob) || !isId(volume)) throw missing(blob);
      return { pinned: await this.#sources.isPinned(blob, volume) };
    },
    check: async ({ blob: id }, { signal }) => {
      const blob = await this.#sources.cache.open(id);
      try {
        return { complete: (await blob.check?.run(signal)) !== false };
      } finally {
        await this.#sources.cache.release(id);
      }
    },
    forgive: ({ blob }) => {
      this.#sources.cache.ifOpen(blob)?.check?.forgive();
      return Promise.resolve({});
    },
  };
}

function demandVolumeId(volume: string): void {
  if (!isId(volume)) throw new UllageError("not-found", "a volume's id has 32 hex digits");
}

function missing(blob: string): UllageError {
  return new UllageError("not-found", `the blob manager has no blob ${blob}`, { hint: "`ullage cache ls` lists them" });
}
