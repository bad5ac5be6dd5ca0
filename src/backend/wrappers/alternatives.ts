import { describeError, SourceError } from "../../base/errors.ts";
import type { Backend, Identity, Probe, ReadOptions, Sink } from "../backend.ts";
import { countingSink } from "./retry.ts";
import { WrappedBackend } from "./wrapped-backend.ts";

/**
 * A file that may be in one of several directories. What it is the first of them says that has it; reads go to where the
 * pinned file was found last, and when that fails, behind the last byte that arrived, to the others. Each compares what it
 * has with the pin, so that files of the same name are never mixed: the same file is found when it, or the file system
 * that it is on, is reached by another path, a copy is not it.
 */
export class AlternativesBackend extends WrappedBackend {
  readonly #places: readonly Backend[];

  /** @param places at least one; the first has the name that the user wrote */
  constructor(places: readonly Backend[]) {
    super(places[0]);
    this.#places = places;
  }

  override probe(headBytes: number, signal?: AbortSignal): Promise<Probe> {
    return this.#try(this.#places[0], signal, (place) => place.probe(headBytes, signal));
  }

  override read(identity: Identity, offset: number, length: number, sink: Sink, options?: ReadOptions): Promise<void> {
    const counting = countingSink(sink);
    const mayGoOn = (error: SourceError): boolean => counting.bytes === 0 || error.code !== "source-bad-answer";
    const read = (place: Backend): Promise<void> =>
      place.read(identity, offset + counting.bytes, length - counting.bytes, counting.sink, options);
    return this.#try(this.inner, options?.signal, read, mayGoOn);
  }

  override stream(identity: Identity, sink: Sink, options?: ReadOptions): Promise<void> {
    const counting = countingSink(sink);
    const stream = (place: Backend): Promise<void> => place.stream(identity, counting.sink, options);
    return this.#try(this.inner, options?.signal, stream, () => counting.bytes === 0);
  }

  override cloneTo(identity: Identity, path: string): Promise<boolean> {
    return this.#try(this.inner, undefined, (place) => place.cloneTo?.(identity, path) ?? Promise.resolve(false));
  }

  override async close(): Promise<void> {
    await Promise.all(this.#places.map((place) => place.close()));
  }

  /** Tries one place after the other, beginning with `first`; the one that answers is `inner` then. @throws SourceError what the first place of all said */
  async #try<T>(
    first: Backend,
    signal: AbortSignal | undefined,
    work: (place: Backend) => Promise<T>,
    mayGoOn: (error: SourceError) => boolean = () => true,
  ): Promise<T> {
    const count = this.#places.length;
    const errors: SourceError[] = [];
    for (let step = 0; step < count; step++) {
      const number = (this.#places.indexOf(first) + step) % count;
      try {
        const result = await work(this.#places[number]);
        this.inner = this.#places[number];
        return result;
      } catch (error) {
        if (!(error instanceof SourceError) || error.code === "source-closed" || signal?.aborted === true) throw error;
        if (!mayGoOn(error)) throw error;
        errors[number] = error;
      }
    }
    const [{ code, message, hint, cause }, ...others] = errors;
    const elsewhere = `elsewhere: ${others.map(describeError).join("; ")}`;
    throw new SourceError(code, message, {
      transient: errors.some(({ transient }) => transient), // where it is may answer again
      hint: hint === undefined ? elsewhere : `${hint}; ${elsewhere}`,
      cause,
    });
  }
}
