import { describeError, SourceError } from "../../base/errors.ts";
import type { Backend, Identity, Probe, ReadOptions, Sink, ZeroTaker } from "../backend.ts";
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
  /** Where the pinned file was found last. */
  #current = 0;

  /** @param places at least one; the first has the name that the user wrote */
  constructor(places: readonly Backend[]) {
    super(places[0]);
    this.#places = places;
  }

  override probe(headBytes: number, signal?: AbortSignal): Promise<Probe> {
    return this.#try(0, signal, (place) => place.probe(headBytes, signal));
  }

  override read(identity: Identity, offset: number, length: number, sink: Sink, options?: ReadOptions): Promise<void> {
    const counting = countingSink(sink);
    const mayGoOn = (error: SourceError): boolean => counting.bytes === 0 || error.code !== "source-bad-answer";
    const read = (place: Backend): Promise<void> =>
      place.read(identity, offset + counting.bytes, length - counting.bytes, counting.sink, options);
    return this.#try(this.#current, options?.signal, read, mayGoOn);
  }

  override stream(identity: Identity, sink: Sink, options?: ReadOptions): Promise<void> {
    const counting = countingSink(sink);
    const stream = (place: Backend): Promise<void> => place.stream(identity, counting.sink, options);
    return this.#try(this.#current, options?.signal, stream, () => counting.bytes === 0);
  }

  /** Where it was found last; the read that follows looks elsewhere when it has gone. */
  override zeroRun(identity: Identity, offset: number, length: number, options?: ReadOptions): Promise<number> {
    const place = this.#places[this.#current];
    return place.zeroRun?.(identity, offset, length, options) ?? Promise.resolve(0);
  }

  override async tellZeros(
    identity: Identity,
    offset: number,
    length: number,
    take: ZeroTaker,
    options?: ReadOptions,
  ): Promise<void> {
    const place = this.#places[this.#current];
    if (place.tellZeros === undefined) take(length, false);
    else await place.tellZeros(identity, offset, length, take, options);
  }

  override cloneTo(identity: Identity, path: string): Promise<boolean> {
    return this.#try(this.#current, undefined, (place) => place.cloneTo?.(identity, path) ?? Promise.resolve(false));
  }

  override async close(): Promise<void> {
    await Promise.all(this.#places.map((place) => place.close()));
  }

  /** Tries one place after the other, beginning with number `first`. @throws SourceError what the first place of all said */
  async #try<T>(
    first: number,
    signal: AbortSignal | undefined,
    work: (place: Backend) => Promise<T>,
    mayGoOn: (error: SourceError) => boolean = () => true,
  ): Promise<T> {
    const count = this.#places.length;
    const errors: SourceError[] = [];
    for (let step = 0; step < count; step++) {
      const number = (first + step) % count;
      try {
        const result = await work(this.#places[number]);
        this.#current = number;
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
