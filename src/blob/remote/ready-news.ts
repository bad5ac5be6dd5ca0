import type { CachedBlob } from "../cached-blob.ts";
import { Body } from "./wire.ts";

/** Ranges that wait for the end of the turn; with more of them the news is only that there are some. */
const MAX_PENDING = 64;

interface Followed {
  blob: CachedBlob;
  ranges: { start: number; end: number }[];
  /** Something is not ready any more, or too much became ready: the client has to look at everything. */
  all: boolean;
}

/**
 * Tells a client which ranges of the blobs that it watches have become ready: one message for all that came in one turn
 * of the event loop and lies together. A message of 0 bytes from 0 on says that readiness must be looked at anew.
 */
export class ReadyNews {
  readonly #send: (body: Buffer) => void;
  readonly #followed = new Map<bigint, Followed>();
  #scheduled = false;

  constructor(send: (body: Buffer) => void) {
    this.#send = send;
  }

  /** @returns what ends it */
  follow(token: bigint, blob: CachedBlob): () => void {
    const followed: Followed = { blob, ranges: [], all: false };
    this.#followed.set(token, followed);
    const forget = blob.watch({
      ready: (first, end) => this.#note(followed, first * blob.unitBytes, Math.min(end * blob.unitBytes, blob.size)),
      lost: () => {
        followed.all = true;
        this.#schedule();
      },
    });
    return () => {
      forget();
      this.#followed.delete(token);
    };
  }

  #note(followed: Followed, start: number, end: number): void {
    const last = followed.ranges.at(-1);
    if (last?.end === start) last.end = end;
    else if (followed.ranges.length < MAX_PENDING) followed.ranges.push({ start, end });
    else followed.all = true;
    this.#schedule();
  }

  #schedule(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    setImmediate(() => this.#flush());
  }

  #flush(): void {
    this.#scheduled = false;
    for (const [token, followed] of this.#followed) {
      const ranges = followed.all ? [{ start: 0, end: 0 }] : followed.ranges;
      for (const { start, end } of ranges) {
        this.#send(
          new Body()
            .u64(token)
            .u64(start)
            .u64(end - start)
            .done(),
        );
      }
      followed.ranges = [];
      followed.all = false;
    }
  }
}
