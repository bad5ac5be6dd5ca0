/** The same message is said again after this long. */
const quietMs = 10_000;

/** Messages remembered at a time; what was said longest ago is forgotten first. */
const maxRemembered = 256;

/**
 * Keeps a message that comes again and again from filling the log: it is said once in ten seconds, with how often it came
 * in between. Messages are the same when they are the same to the letter.
 */
export class RepeatedMessages {
  readonly #now: () => number;
  readonly #said = new Map<string, { at: number; since: number }>();

  /** @param now monotonic milliseconds */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
  }

  /** @returns the message as it is to be said, or undefined: not now */
  say(message: string): string | undefined {
    const now = this.#now();
    const before = this.#said.get(message);
    if (before !== undefined && now - before.at < quietMs) {
      before.since++;
      return undefined;
    }
    this.#said.delete(message);
    this.#said.set(message, { at: now, since: 0 });
    if (this.#said.size > maxRemembered) this.#said.delete(this.#said.keys().next().value!);
    if (before === undefined || before.since === 0) return message;
    return `${message} (and ${before.since} times before)`;
  }
}
