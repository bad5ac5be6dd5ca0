import { createHash, type Hash } from "node:crypto";
import { SourceError } from "../../base/errors.ts";
import type { Identity, Sink } from "../backend.ts";
import { digestOf } from "../http/http-answer.ts";

/** Hashes all bytes of an object that is pinned by its digest, on their way to a sink. */
export class DigestCheck {
  readonly sink: Sink;
  readonly #wanted: string;
  readonly #hash: Hash;

  private constructor(wanted: string, sink: Sink) {
    this.#wanted = wanted;
    this.#hash = createHash(wanted.slice(0, wanted.indexOf(":")));
    this.sink = (chunk) => {
      this.#hash.update(chunk);
      return sink(chunk);
    };
  }

  /** Undefined when no digest pins the object. */
  static of(identity: Identity, sink: Sink): DigestCheck | undefined {
    const digest = digestOf(identity);
    return digest === undefined ? undefined : new DigestCheck(digest, sink);
  }

  /** @throws SourceError `source-wrong-bytes` */
  demandMatch(url: string): void {
    const digest = `${this.#wanted.slice(0, this.#wanted.indexOf(":"))}:${this.#hash.digest("hex")}`;
    if (digest === this.#wanted) return;
    throw new SourceError("source-wrong-bytes", `${url} sent bytes with the digest ${digest}, not ${this.#wanted}`, {
      transient: false,
      hint: "what the source keeps is damaged, or something between changes it: nothing of it was used",
    });
  }
}
