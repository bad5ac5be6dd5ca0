/** The Ullage under test: the real command, as a user starts it, and its API over the unix socket. */
import { Agent, request } from "node:http";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { type RunningServer, startServer } from "./process.ts";
import type { DiskServer } from "./peers.ts";

const command = new URL("../bin/ullage", import.meta.url).pathname;
const pollMs = 10;

export interface VolumeCreation {
  name: string;
  size?: number;
  from?: { source: string } | { snapshot: string };
  settings?: { hydrate: "auto" | "off" };
}

export class UllageServer {
  /** the data directory */
  readonly folder: string;
  readonly nbdSocket: string;
  readonly #apiSocket: string;
  readonly #agent = new Agent({ keepAlive: true });
  readonly #process: RunningServer;

  private constructor(folder: string, process: RunningServer) {
    this.folder = folder;
    this.#apiSocket = join(folder, "api.sock");
    this.nbdSocket = join(folder, "nbd.sock");
    this.#process = process;
  }

  /** @param folder the data directory */
  static async start(folder: string): Promise<UllageServer> {
    const nbd = join(folder, "nbd.sock");
    const listen = ["--api", `unix:${join(folder, "api.sock")}`, "--nbd", `unix:${nbd}`];
    // The NBD listener opens last: once it accepts, every command works.
    const server = await startServer(command, ["serve", "--data", folder, ...listen, "--log-level", "warn"], nbd);
    return new UllageServer(folder, server);
  }

  get pid(): number {
    return this.#process.pid;
  }

  async create(volume: VolumeCreation): Promise<void> {
    await this.api("POST", "/v1/volumes", volume);
  }

  /** Waits until the volume needs its source no more. */
  async detached(name: string): Promise<void> {
    for (;;) {
      const { hydration } = (await this.api("GET", `/v1/volumes/${name}`)) as { hydration: { state: string } };
      if (hydration.state === "detached") return;
      await sleep(pollMs);
    }
  }

  uri(volume: string): string {
    return `nbd+unix:///${volume}?socket=${this.nbdSocket}`;
  }

  /** A volume seen as one server among others. Stopping it leaves the daemon alone. */
  disk(volume: string, name: string): DiskServer {
    return { name, uri: this.uri(volume), pid: this.pid, stop: async () => {}, kill: async () => {} };
  }

  /** One call on a kept-alive connection. @throws Error with the problem document when the answer is not 2xx */
  async api(method: string, path: string, body?: unknown): Promise<unknown> {
    const text = await this.#answer(method, path, body);
    return text === "" ? undefined : JSON.parse(text);
  }

  /** What /metrics says; 0 when it says nothing. @param sample with its labels, as it stands there */
  async metric(sample: string): Promise<number> {
    const line = (await this.#answer("GET", "/metrics")).split("\n").find((text) => text.startsWith(`${sample} `));
    return line === undefined ? 0 : Number(line.slice(sample.length + 1));
  }

  #answer(method: string, path: string, body?: unknown): Promise<string> {
    return new Promise((resolve, reject) => {
      const headers = body === undefined ? {} : { "content-type": "application/json" };
      const call = request({ socketPath: this.#apiSocket, agent: this.#agent, method, path, headers }, (response) => {
        const chunks: Buffer[] = [];
        response.on("data", (chunk: Buffer) => chunks.push(chunk));
        response.on("error", reject);
        response.on("end", () => {
          const text = Buffer.concat(chunks).toString();
          if (Math.floor((response.statusCode ?? 0) / 100) === 2) resolve(text);
          else reject(new Error(`${method} ${path}: ${response.statusCode} ${text}`));
        });
      });
      call.on("error", reject);
      call.end(body === undefined ? undefined : JSON.stringify(body));
    });
  }

  /** Reads the stream of events, as a dashboard does, until `signal`. @throws Error when it ends by itself */
  events(signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const headers = { accept: "text/event-stream" };
      const options = { socketPath: this.#apiSocket, path: "/v1/events", headers, signal };
      const call = request(options, (response) => {
        response.resume();
        response.on("close", () => (signal.aborted ? resolve() : reject(new Error("the stream of events ended"))));
        response.on("error", () => undefined); // how an abort shows; `close` follows
      });
      call.on("error", (error) => (signal.aborted ? resolve() : reject(error)));
      call.end();
    });
  }

  async stop(): Promise<void> {
    this.#agent.destroy();
    await this.#process.stop();
  }

  async kill(): Promise<void> {
    this.#agent.destroy();
    await this.#process.kill();
  }
}
