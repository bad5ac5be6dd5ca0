import type { TestContext } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Oracle, stamp } from "../sim/oracle.ts";
import { Random } from "../sim/random.ts";
import { EngineClient, ProcessDied } from "./engine-client.ts";
import type { Request, ServeRequest } from "./engine-process.ts";

const blockBytes = 4096;

/** As often as they come. */
const kinds: Request["kind"][] = [
  ...Array.from({ length: 10 }, () => "write" as const),
  ...(["read", "read", "read", "trim", "trim", "zero", "zero", "allocate", "flush", "flush"] as const),
];

/** A volume, clients that work on it at random, and an oracle that knows what it may show. */
export class CrashWorld {
  readonly oracle: Oracle;
  readonly random: Random;
  readonly #request: ServeRequest;
  readonly #places: number[];
  #operations = 0;

  readonly #clients = new Set<EngineClient>();

  /** No process outlives the test. */
  constructor(t: TestContext, seed: number, request: Omit<ServeRequest, "kind" | "acceptLoss">) {
    t.after(async () => {
      for (const client of this.#clients) await client.kill();
    });
    this.random = new Random(seed);
    this.#request = { ...request, kind: "serve", acceptLoss: false };
    const { imageBytes, size } = request;
    const image = stamp("image", 0, imageBytes);
    const initial = (sector: number): Buffer => {
      const bytes = Buffer.alloc(512);
      bytes.set(image.subarray(sector * 512, sector * 512 + 512));
      return bytes;
    };
    this.oracle = new Oracle(initial, { tears: true });
    this.#places = Array.from({ length: 6 }, () => this.random.below(size / blockBytes) * blockBytes);
    this.#places.push(0, 4 * 1024 * 1024 - 2 * blockBytes, size - blockBytes);
  }

  async create(): Promise<void> {
    const client = this.#spawn({ ...this.#request, kind: "create" });
    const { kind } = await client.started();
    if (kind !== "created") throw new Error(`creating the volume: ${kind}`);
    await client.leave();
  }

  /** Starts a process; it may be killed before it serves. */
  start(options: { acceptLoss?: boolean } = {}): EngineClient {
    return this.#spawn({ ...this.#request, ...options });
  }

  #spawn(request: ServeRequest): EngineClient {
    const client = new EngineClient(request);
    this.#clients.add(client);
    return client;
  }

  /** The process must serve. @throws what it said instead */
  async serving(client: EngineClient): Promise<"ok" | "lostUnflushed"> {
    const message = await client.started();
    if (message.kind === "serving" && (message.state === "ok" || message.state === "lostUnflushed")) {
      return message.state;
    }
    throw new Error(`the volume does not serve: ${JSON.stringify(message)}`);
  }

  /** Reads every sector that was ever touched, and some that were not. @throws OracleError */
  async verify(client: EngineClient): Promise<void> {
    const { touched } = this.oracle;
    for (let index = 0; index < touched.length;) {
      const first = touched[index];
      let end = first;
      while (index < touched.length && touched[index] <= end + 64 && touched[index] < first + 1024) {
        end = touched[index++] + 1;
      }
      await this.#read(client, first * 512, (end - first) * 512);
    }
    for (let n = 0; n < 4; n++) await this.#read(client, ...this.#range(16 * blockBytes));
  }

  /**
   * Several clients at once, until the process dies or has answered so many operations; each ends at its first error.
   * @throws one of these errors, when all have ended
   */
  async work(client: EngineClient, clients: number, answers: number): Promise<void> {
    const until = client.answers + answers;
    const one = async (): Promise<void> => {
      while (client.answers < until) await this.#operate(client);
    };
    const ends = await Promise.allSettled(Array.from({ length: clients }, () => one().catch(ignoreDeath)));
    for (const end of ends) if (end.status === "rejected") throw end.reason;
  }

  #range(longest: number): [number, number] {
    const { random } = this;
    const { size } = this.#request;
    const near = random.pick(this.#places) + random.below(16) * blockBytes;
    const place = random.chance(0.8) ? near : random.below(size / blockBytes) * blockBytes;
    const whole = random.chance(0.6);
    const offset = Math.min(place + (whole ? 0 : random.below(blockBytes)), size - 512);
    const length = whole ? random.between(1, longest / blockBytes) * blockBytes : random.between(1, longest);
    return [offset, Math.min(length, size - offset)];
  }

  async #operate(client: EngineClient): Promise<void> {
    const { random } = this;
    const kind = random.pick(kinds);
    if (random.chance(0.01)) {
      await client.ask("checkpoint");
    } else if (kind === "flush") {
      await this.flush(client);
    } else if (kind === "read") {
      await this.#read(client, ...this.#range(8 * blockBytes));
    } else {
      const longest = random.chance(0.1) ? 64 * blockBytes : 4 * blockBytes;
      await this.#change(client, kind, ...this.#range(longest));
    }
  }

  async #change(client: EngineClient, kind: Request["kind"], offset: number, length: number): Promise<void> {
    if (kind === "trim") {
      const { size } = this.#request;
      const first = Math.ceil(offset / blockBytes) * blockBytes;
      const end = offset + length === size ? size : Math.floor((offset + length) / blockBytes) * blockBytes;
      if (end <= first) return;
      [offset, length] = [first, end - first];
    }
    if (this.oracle.conflicts(offset, length)) {
      await sleep(1);
      return;
    }
    const bytes = kind === "write" ? stamp(++this.#operations, offset, length) : undefined;
    const operation = this.oracle.issue(offset, length, bytes);
    try {
      await client.ask(kind, offset, length, bytes);
      this.oracle.settle(operation, true);
    } catch (error) {
      if (!(error instanceof ProcessDied)) this.oracle.settle(operation, false);
      throw error;
    }
  }

  async write(client: EngineClient, offset: number, length: number): Promise<void> {
    await this.#change(client, "write", offset, length);
  }

  async flush(client: EngineClient): Promise<void> {
    const token = this.oracle.flushStart();
    await client.ask("flush");
    this.oracle.flushDone(token);
  }

  async #read(client: EngineClient, offset: number, length: number): Promise<void> {
    const read = this.oracle.readStart(offset, length);
    let bytes: Uint8Array | undefined;
    try {
      bytes = await client.ask("read", offset, length);
    } catch (error) {
      if (!(error instanceof ProcessDied)) this.oracle.readFailed(read);
      throw error;
    }
    this.oracle.readDone(read, Buffer.from(bytes!));
  }
}

function ignoreDeath(error: unknown): void {
  if (!(error instanceof ProcessDied)) throw error;
}
