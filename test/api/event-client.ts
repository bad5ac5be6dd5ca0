import { spawn } from "node:child_process";
import type { TestContext } from "node:test";
import { atEnd } from "../daemon/support.ts";

export interface ReceivedEvent {
  id: string;
  name: string;
  data: Record<string, unknown>;
}

/** Far more than anything here takes on a loaded machine. */
const patienceMs = 30_000;

/** curl, listening to /v1/events. */
export class EventClient {
  /** Everything received so far. */
  readonly events: ReceivedEvent[] = [];
  /** Comments, the heartbeat among them. */
  comments = 0;
  /** Of the last block, events or not. */
  lastId = "";
  /** Resolves when the stream has ended. */
  readonly ended: Promise<void>;
  readonly #child;
  #rest = "";
  #at = 0;
  #wake: () => void = () => undefined;

  private constructor(t: TestContext, args: string[]) {
    this.#child = spawn("curl", ["-sSN", ...args], { stdio: ["ignore", "pipe", "inherit"] });
    this.#child.stdout.setEncoding("utf8").on("data", (text: string) => this.#received(text));
    this.ended = new Promise((resolve) => this.#child.once("close", () => resolve()));
    void this.ended.then(() => this.#wake());
    atEnd(t, () => this.stop());
  }

  /** Resolves when it listens. @param lastId where an earlier one left off */
  static async connect(t: TestContext, socketPath: string, lastId?: string): Promise<EventClient> {
    const header = lastId === undefined ? [] : ["-H", `Last-Event-ID: ${lastId}`];
    const client = new EventClient(t, ["--unix-socket", socketPath, ...header, "http://localhost/v1/events"]);
    await client.#until(() => client.lastId !== "");
    return client;
  }

  /** The next event, in order, that `wanted` says yes to; those before it are skipped. */
  async next(wanted: string | ((event: ReceivedEvent) => boolean)): Promise<ReceivedEvent> {
    const matches = typeof wanted === "string" ? ({ name }: ReceivedEvent) => name === wanted : wanted;
    for (;;) {
      await this.#until(() => this.events.length > this.#at);
      const event = this.events[this.#at++];
      if (matches(event)) return event;
    }
  }

  /** Resolves when a comment more has come. */
  async heartbeat(): Promise<void> {
    const before = this.comments;
    await this.#until(() => this.comments > before);
  }

  async stop(): Promise<void> {
    this.#child.kill("SIGKILL");
    await this.ended;
  }

  /** It reads nothing until `SIGCONT`. */
  signal(signal: "SIGSTOP" | "SIGCONT"): void {
    this.#child.kill(signal);
  }

  async #until(met: () => boolean): Promise<void> {
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      this.#wake();
    }, patienceMs);
    while (!met()) {
      if (late || this.#child.exitCode !== null) {
        const seen = this.events.map(({ name }) => name).join(", ");
        throw new Error(`the stream ${late ? "told nothing of it" : "ended"}; events so far: ${seen}`);
      }
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
    clearTimeout(timer);
  }

  #received(text: string): void {
    const blocks = (this.#rest + text).split("\n\n");
    this.#rest = blocks.pop()!;
    for (const block of blocks) this.#block(block);
    this.#wake();
  }

  #block(block: string): void {
    const fields = new Map<string, string>();
    for (const line of block.split("\n")) {
      if (line.startsWith(":")) this.comments++;
      const colon = line.indexOf(": ");
      if (colon > 0) fields.set(line.slice(0, colon), line.slice(colon + 2));
    }
    const id = fields.get("id");
    if (id !== undefined) this.lastId = id;
    const data = fields.get("data");
    if (data === undefined) return;
    this.events.push({
      id: id ?? "",
      name: fields.get("event") ?? "message",
      data: JSON.parse(data) as ReceivedEvent["data"],
    });
  }
}
