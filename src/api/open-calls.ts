import type { ServerResponse } from "node:http";
import type { Tokens } from "./tokens.ts";

/** How long a stream may outlive its token. */
const checkMs = 5000;

/** Answers under way over TCP: those that go on for long, such as streams of events, end soon after their token does. */
export class OpenCalls {
  readonly #open = new Map<ServerResponse, string>();

  constructor(tokens: Tokens, everyMs = checkMs) {
    const check = (): void => {
      for (const [response, id] of this.#open) if (!tokens.isLive(id)) response.destroy();
    };
    setInterval(check, everyMs).unref();
  }

  /** @param id of the token that the answer is for */
  note(response: ServerResponse, id: string): void {
    this.#open.set(response, id);
    response.once("close", () => this.#open.delete(response));
  }
}
