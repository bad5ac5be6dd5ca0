import { type ChildProcess, fork } from "node:child_process";
import type { Message, Request, ServeRequest } from "./engine-process.ts";

/** The process is dead: nothing that follows is answered. */
export class ProcessDied extends Error {}

/** The other end of engine-process.ts. */
export class EngineClient {
  readonly #child: ChildProcess;
  readonly #waiting = new Map<
    number,
    { resolve: (bytes: Uint8Array | undefined) => void; reject: (e: Error) => void }
  >();
  readonly #first = Promise.withResolvers<Message>();
  readonly #gone: Promise<void>;
  #number = 0;
  /** Operations answered. */
  answers = 0;
  dead = false;

  constructor(request: ServeRequest) {
    this.#child = fork(new URL("engine-process.ts", import.meta.url).pathname, {
      serialization: "advanced",
      stdio: ["ignore", "inherit", "inherit", "ipc"],
    });
    // Answers that were sent before the process died arrive before the channel closes.
    const exited = new Promise((resolve) => this.#child.once("exit", resolve));
    const closed = new Promise((resolve) => this.#child.once("disconnect", resolve));
    this.#gone = Promise.all([exited, closed]).then(() => {
      this.dead = true;
      const died = new ProcessDied("the process died");
      this.#first.reject(died);
      for (const { reject } of this.#waiting.values()) reject(died);
    });
    this.#first.promise.catch(() => undefined);
    this.#child.on("message", (message: Message) => this.#heard(message));
    this.#child.send(request);
  }

  #heard(message: Message): void {
    if (message.kind !== "answer") {
      this.#first.resolve(message);
      return;
    }
    this.answers++;
    const { resolve, reject } = this.#waiting.get(message.number)!;
    this.#waiting.delete(message.number);
    if (message.error === undefined) resolve(message.bytes);
    else reject(new Error(message.error));
  }

  /** How the start went. @throws ProcessDied */
  started(): Promise<Message> {
    return this.#first.promise;
  }

  /** @throws ProcessDied, or what the engine answered */
  ask(kind: Request["kind"], offset = 0, length = 0, bytes?: Uint8Array): Promise<Uint8Array | undefined> {
    if (!this.#child.connected) return Promise.reject(new ProcessDied("the process died"));
    const number = ++this.#number;
    return new Promise((resolve, reject) => {
      this.#waiting.set(number, { resolve, reject });
      this.#child.send({ kind, number, offset, length, ...(bytes && { bytes }) } satisfies Request, (error) => {
        if (error) reject(new ProcessDied("the process died"));
      });
    });
  }

  /** @returns when the process has been reaped and everything that it said was heard */
  async kill(signal: "SIGKILL" | "SIGSTOP" = "SIGKILL"): Promise<void> {
    this.#child.kill(signal);
    if (signal === "SIGKILL") await this.#gone;
  }

  /** Ends a process that is done. */
  async leave(): Promise<void> {
    if (this.#child.connected) this.#child.disconnect();
    await this.#gone;
  }
}
