import { spawn } from "node:child_process";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { TestContext } from "node:test";
import { atEnd } from "../blob/support.ts";

/** What v1-client.py answers. */
export type Answer = Record<string, never> & {
  tag: number;
  request: number;
  flags: number;
  size: number;
  descriptors: number;
  token: number;
  base: number;
  count: number;
  result: number;
  end: boolean;
  error: string;
  hex: string;
  body: string;
};

/** The client in Python, which shares no code with ours. */
export class V1Client {
  readonly #child;
  readonly #lines: AsyncIterator<string>;

  constructor(t: TestContext) {
    this.#child = spawn("python3", [join(import.meta.dirname, "v1-client.py")], { stdio: ["pipe", "pipe", "inherit"] });
    this.#lines = createInterface({ input: this.#child.stdout })[Symbol.asyncIterator]();
    const exited = new Promise((resolve) => this.#child.once("close", resolve));
    atEnd(t, async () => {
      this.#child.stdin.end();
      const timer = setTimeout(() => this.#child.kill("SIGKILL"), 5000);
      await exited;
      clearTimeout(timer);
    });
  }

  async do<T = Answer>(command: Record<string, unknown>): Promise<T> {
    this.#child.stdin.write(`${JSON.stringify(command)}\n`);
    const { value, done } = await this.#lines.next();
    if (done === true) throw new Error("the client has ended");
    return JSON.parse(value) as T;
  }
}
