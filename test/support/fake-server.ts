import {
  type IncomingHttpHeaders,
  type IncomingMessage,
  type Server,
  type ServerResponse,
  createServer,
} from "node:http";
import type { AddressInfo } from "node:net";

/*
 * An HTTP server whose answers a function makes, with faults on demand: what the fakes of stores and registries stand on.
 */

export interface Asked {
  /** 0, 1, … in order of arrival */
  index: number;
  method: string;
  /** As it was sent: path and query. */
  target: string;
  url: URL;
  headers: IncomingHttpHeaders;
  body: string;
}

export interface Answer {
  status: number;
  headers?: Record<string, string>;
  body?: Buffer | string;
}

/**
 * - status: this answer instead
 * - reset: the connection is reset after `after` bytes of the body; absent: before any answer
 * - stall: nothing more comes after `after` bytes of the body; absent: no answer at all
 * - cut: the connection ends after `after` bytes of a body that was announced in full
 * - wrong-bytes: the right answer, with one bit of the body flipped
 */
export type Trouble =
  | { kind: "status"; status: number; headers?: Record<string, string>; body?: string }
  | { kind: "reset" | "stall"; after?: number }
  | { kind: "cut"; after: number }
  | { kind: "wrong-bytes" };

export interface FakeServer extends AsyncDisposable {
  readonly port: number;
  /** `http://127.0.0.1:PORT` */
  readonly origin: string;
  /** In order of arrival. */
  readonly requests: Asked[];
  /** Open connections. */
  connections: number;
  /** Decides per request what goes wrong; asked when nothing was injected. */
  onRequest: ((asked: Asked) => Trouble | undefined) | undefined;
  /** Makes the next `count` requests (default 1) fail like this. */
  inject(trouble: Trouble, count?: number): void;
  /** Resets all connections and refuses new ones until `resume`, on the same port. */
  pause(): Promise<void>;
  resume(): Promise<void>;
}

export async function startFakeServer(answer: (asked: Asked) => Answer | Promise<Answer>): Promise<FakeServer> {
  const injected: Trouble[] = [];
  const requests: Asked[] = [];
  let server: Server;
  let port = 0;

  const respond = async (message: IncomingMessage, response: ServerResponse): Promise<void> => {
    const asked = await read(message, requests.length);
    requests.push(asked);
    const trouble = injected.shift() ?? fake.onRequest?.(asked);
    if (trouble?.kind === "reset" && trouble.after === undefined) return void message.socket.resetAndDestroy();
    if (trouble?.kind === "stall" && trouble.after === undefined) return;
    const { status, headers, body = "" } = trouble?.kind === "status" ? trouble : await answer(asked);
    const bytes = Buffer.from(body);
    if (trouble?.kind === "wrong-bytes" && bytes.length > 0) bytes[bytes.length >> 1] ^= 1;
    response.writeHead(status, { "content-length": String(bytes.length), ...headers });
    const after = trouble !== undefined && "after" in trouble ? trouble.after : undefined;
    if (after === undefined) return void response.end(bytes);
    response.write(bytes.subarray(0, after), () => {
      // Until the kernel has what was written: a reset would otherwise overtake it.
      setTimeout(() => {
        if (trouble?.kind === "reset") message.socket.resetAndDestroy();
        if (trouble?.kind === "cut") message.socket.destroy();
      }, 20);
    });
  };

  const listen = (): Promise<void> =>
    new Promise((resolve, reject) => {
      server = createServer({ keepAliveTimeout: 60_000 }, (message, response) => {
        respond(message, response).catch((error: unknown) => response.destroy(error as Error));
      });
      server.on("connection", (socket) => {
        fake.connections++;
        socket.on("close", () => fake.connections--);
        socket.on("error", () => undefined);
      });
      server.once("error", reject);
      server.listen(port, "127.0.0.1", resolve);
    });
  const stop = (): Promise<void> =>
    new Promise((resolve) => {
      server.close(() => resolve());
      server.closeAllConnections();
    });

  const fake = {
    port: 0,
    origin: "",
    requests,
    connections: 0,
    onRequest: undefined as FakeServer["onRequest"],
    inject: (trouble: Trouble, count = 1): void => {
      for (let n = 0; n < count; n++) injected.push(trouble);
    },
    pause: stop,
    resume: listen,
    [Symbol.asyncDispose]: stop,
  };
  await listen();
  port = (server!.address() as AddressInfo).port;
  fake.port = port;
  fake.origin = `http://127.0.0.1:${port}`;
  return fake;
}

async function read(message: IncomingMessage, index: number): Promise<Asked> {
  const chunks: Buffer[] = [];
  for await (const chunk of message) chunks.push(chunk as Buffer);
  const target = message.url ?? "/";
  const url = new URL(target, "http://fake.invalid");
  const { method = "GET", headers } = message;
  return { index, method, target, url, headers, body: Buffer.concat(chunks).toString("utf8") };
}

/** What a store that does everything right answers to a GET: conditions (RFC 9110 section 13), then one range. */
export function rangeAnswer(asked: Asked, content: Buffer, headers: Record<string, string>): Answer {
  const match = asked.headers["if-match"];
  if (match !== undefined && match !== "*" && match !== headers["etag"]) return { status: 412 };
  const since = asked.headers["if-unmodified-since"];
  if (match === undefined && since !== undefined && Date.parse(headers["last-modified"] ?? "") > Date.parse(since)) {
    return { status: 412 };
  }
  const range = /^bytes=(\d+)-(\d*)$/.exec(asked.headers.range ?? "");
  if (range === null) return { status: 200, headers: { ...headers, "accept-ranges": "bytes" }, body: content };
  const first = Number(range[1]);
  const last = Math.min(range[2] === "" ? Infinity : Number(range[2]), content.length - 1);
  if (first >= content.length || first > last) {
    return { status: 416, headers: { "content-range": `bytes */${content.length}` } };
  }
  return {
    status: 206,
    headers: { ...headers, "accept-ranges": "bytes", "content-range": `bytes ${first}-${last}/${content.length}` },
    body: content.subarray(first, last + 1),
  };
}
