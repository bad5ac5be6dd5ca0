import type { SourceError } from "../base/errors.ts";

/** The last thing that the source did was to fail. */
export interface SourceTrouble {
  error: SourceError;
  /** Somebody who asked got the error; false: it is being tried again. */
  final: boolean;
  /** RFC 3339 */
  at: string;
}

/** How a blob's source is, and who wants to hear of it. */
export class SourceTroubles {
  #last: SourceTrouble | undefined;
  readonly #listeners = new Set<() => void>();

  /** Undefined: the last request was answered well, or none was made yet. */
  get last(): SourceTrouble | undefined {
    return this.#last;
  }

  /** @param trouble undefined: a request was answered well */
  note(trouble: SourceTrouble | undefined): void {
    const wasFinal = this.#last?.final === true;
    this.#last = trouble;
    if (!wasFinal && trouble?.final !== true) return;
    for (const listener of this.#listeners) listener();
  }

  /** `listener` hears when the source failed somebody, and when it does not any more. @returns what ends it */
  listen(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }
}
