import type { Identity } from "../../backend/backend.ts";
import type { BlobMeta } from "../blob-meta.ts";

/*
 * What version 2's request Ask carries, as JSON: whatever is no range and no descriptor. Every question may be asked again,
 * because a client asks again when the manager went away before it had answered.
 */

/** A source, as users name it. It may have credentials in it: never to be logged. */
export interface AskedSource {
  source: string;
  format?: string;
  download?: boolean;
  unpinned?: boolean;
}

export interface Questions {
  /** What is there now. */
  find: { asked: { request: AskedSource; guarded: boolean }; answer: FoundAnswer };
  /** The blob of it, for a volume; made when there is none. `identity`: what was found. `making`: an id to ask for progress by. */
  make: {
    asked: { request: AskedSource; guarded: boolean; identity: Identity; volume?: string; making?: string };
    answer: { meta: BlobMeta };
  };
  /** How far a `make` is that fetches all of an image first, in bytes; empty: none of that id does, or not yet. */
  progress: { asked: { making: string }; answer: Partial<ProgressAnswer> };
  about: { asked: { blob: string }; answer: AboutAnswer };
  claim: { asked: { blob: string; volume: string }; answer: object };
  /** The volume is gone. `blob`: the one that it may have pinned */
  forget: { asked: { volume: string; blob: string | null }; answer: object };
  giveUp: { asked: { blob: string }; answer: object };
  isPinned: { asked: { blob: string; volume: string }; answer: { pinned: boolean } };
  /** See `ContentCheck`. */
  check: { asked: { blob: string }; answer: { complete: boolean } };
  forgive: { asked: { blob: string }; answer: object };
}

export type QuestionName = keyof Questions;

export interface FoundAnswer {
  url: string;
  format: string;
  identity: Identity;
  /** null: known when it is unpacked */
  size: number | null;
}

export interface ProgressAnswer {
  done: number;
  total: number;
}

export interface AboutAnswer {
  meta: BlobMeta;
  readyBytes: number;
  diskBytes: number;
  usedAt: number;
  verified: boolean | null;
}

/** Who answers. */
export interface Answerer {
  /** @param options.trusted the peer may name any source */
  answer(name: string, asked: unknown, options: { trusted: boolean; signal: AbortSignal }): Promise<object>;
}
