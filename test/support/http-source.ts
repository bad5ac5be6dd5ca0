import { type FileHandle, open } from "node:fs/promises";
import { type IncomingMessage, type Server, type ServerResponse, createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { TokenBucket } from "./token-bucket.ts";

/**
 * An HTTP server with one object, for tests and benchmarks: ranges, validators, a latency before every answer, one
 * bandwidth shared by all connections, and faults on demand.
 *
 *     await using source = await startHttpSource({ content: Buffer.alloc(1 << 20), latencyMs: 5 });
 *     source.inject({ kind: "status", status: 503 }, 2);        // the next two requests
 *     source.onRequest = (request) => (request.start > 0 ? { kind: "reset" } : undefined);   // or decide per request
 *     … source.url, source.requests, source.bytesServed
 */
export interface HttpSourceOptions {
  /** The object: bytes, or the path of a file. */
  content: Buffer | string;
  /** Pause between a request and its answer. */
  latencyMs?: number;
  /** Body bytes per second of all connections together; absent: no limit. */
  bytesPerSecond?: number;
  /** The ETag header; default a strong one, `null`: none. */
  etag?: string | null;
  /** The Last-Modified header; default none. */
  lastModified?: Date;
  /** The path that the object is at; default `/disk.img`. Others answer 404. */
  path?: string;
  /** `user:password` that every request must bring. */
  credentials?: string;
  /** A loopback address to listen on; default 127.0.0.1. */
  host?: string;
}

/**
 * - status: an answer with an empty body
 * - ignore-range: 200 and the whole object
 * - short / long: the body ends `bytes` too early / goes on for `bytes` more; announced rightly, or, if `chunked`, not at all
 * - cut: the connection is closed after `after` bytes of a body that was announced in full
 * - content-range: this text as Content-Range (null: none), with the body that was asked for
 * - reset: the connection is reset after `after` bytes of the body; absent: before any answer
 * - stall: nothing more comes after `after` bytes of the body; absent: no answer at all
 * - trickle: the body comes in drops of `bytes`, one every `everyMs`
 * - redirect: to `location` with `status` (302)
 * - headers: the right answer with these headers on top, e.g. another ETag or a Content-Encoding
 */
export type Fault =
  | { kind: "status"; status: number; headers?: Record<string, string> }
  | { kind: "ignore-range" }
  | { kind: "short" | "long"; bytes: number; chunked?: boolean }
  | { kind: "cut"; after: number }
  | { kind: "content-range"; value: string | null }
  | { kind: "reset" | "stall"; after?: number }
  | { kind: "trickle"; bytes: number; everyMs: number }
  | { kind: "redirect"; location: string; status?: number }
  | { kind: "headers"; headers: Record<string, string> };

export interface SourceRequest {
  /** 0, 1, … in order of arrival */
  index: number;
  /** Path and query. */
  path: string;
  /** First byte asked for; 0 without a range. */
  start: number;
  /** Behind the last byte asked for (and there); the object's size without a range. */
  end: number;
  ranged: boolean;
  headers: IncomingMessage["headers"];
}

export interface HttpSource extends AsyncDisposable {
  /** Address of the object. */
  readonly url: string;
  readonly port: number;
  /** The first `logLimit` requests, in order of arrival. */
  readonly requests: readonly SourceRequest[];
  requestCount: number;
  /** Body bytes handed to connections. */
  bytesServed: number;
  /** Connections open now, and the most there ever were. */
  connections: number;
  peakConnections: number;
  /** May be changed at any time. */
  etag: string | null;
  lastModified: Date | undefined;
  latencyMs: number;
  /** Body bytes per second of all connections together, from now on. */
  limitTo(bytesPerSecond: number): void;
  /** Decides per request what goes wrong; asked when nothing was injected. */
  onRequest: ((request: SourceRequest) => Fault | undefined) | undefined;
  /** Makes the next `count` requests (default 1) fail like this. */
  inject(fault: Fault, count?: number): void;
  /** Replaces the object. Answers under way may mix both. */
  replace(content: Buffer): void;
  /** Resets all connections and refuses new ones until `resume`, on the same port. */
  pause(): Promise<void>;
  resume(): Promise<void>;
  close(): Promise<void>;
}

const writeBytes = 256 * 1024;
const logLimit = 10_000;

export async function startHttpSource(options: HttpSourceOptions): Promise<HttpSource> {
  let object = typeof options.content === "string" ? await openFile(options.content) : fromBuffer(options.content);
  const objectPath = options.path ?? "/disk.img";
  const host = options.host ?? "127.0.0.1";
  let bucket = options.bytesPerSecond === undefined ? undefined : new TokenBucket(options.bytesPerSecond);
  const requests: SourceRequest[] = [];
  const injected: Fault[] = [];
  let server: Server;

  const answer = async (message: IncomingMessage, response: ServerResponse): Promise<void> => {
    const request = parseRequest(message, source.requestCount++, object.size);
    if (requests.length < logLimit) requests.push(request);
    const fault = injected.shift() ?? source.onRequest?.(request);
    if (source.latencyMs > 0) await sleep(source.latencyMs);
    if (fault?.kind === "reset" && fault.after === undefined) return void message.socket.resetAndDestroy();
    if (fault?.kind === "stall" && fault.after === undefined) return;
    if (fault?.kind === "redirect") return answerEmpty(response, fault.status ?? 302, { location: fault.location });
    if (fault?.kind === "status") return answerEmpty(response, fault.status, fault.headers ?? {});
    if (request.path.split("?")[0] !== objectPath) return answerEmpty(response, 404, {});
    if (options.credentials !== undefined && !authorized(message, options.credentials)) {
      return answerEmpty(response, 401, { "www-authenticate": 'Basic realm="test"' });
    }
    const headers: Record<string, string> = { "accept-ranges": "bytes" };
    if (source.etag !== null) headers["etag"] = source.etag;
    if (source.lastModified !== undefined) headers["last-modified"] = source.lastModified.toUTCString();
    if (fault?.kind === "headers") Object.assign(headers, fault.headers);
    if (failsCondition(message, source)) return answerEmpty(response, 412, headers);
    const ranged = request.ranged && fault?.kind !== "ignore-range";
    if (ranged && request.start >= object.size) {
      return answerEmpty(response, 416, { ...headers, "content-range": `bytes */${object.size}` });
    }
    const first = ranged ? request.start : 0;
    const last = ranged ? request.end : object.size;
    if (ranged) headers["content-range"] = `bytes ${first}-${last - 1}/${object.size}`;
    if (fault?.kind === "content-range") {
      if (fault.value === null) delete headers["content-range"];
      else headers["content-range"] = fault.value;
    }
    let bodyLength = last - first;
    if (fault?.kind === "short") bodyLength -= fault.bytes;
    if (fault?.kind === "long") bodyLength += fault.bytes;
    const chunked = (fault?.kind === "short" || fault?.kind === "long") && fault.chunked === true;
    if (!chunked) headers["content-length"] = String(bodyLength);
    response.writeHead(ranged ? 206 : 200, headers);
    // Node drops the body of such an answer, but it would still be paid for out of everybody's bandwidth.
    if (message.method === "HEAD") return void response.end();
    await sendBody(response, first, bodyLength, fault);
  };

  const sendBody = async (response: ServerResponse, first: number, length: number, fault?: Fault): Promise<void> => {
    const stopAfter = fault !== undefined && "after" in fault && fault.after !== undefined ? fault.after : length;
    const step = fault?.kind === "trickle" ? fault.bytes : writeBytes;
    const sending = Math.min(length, stopAfter);
    for (let done = 0; done < sending && !response.destroyed;) {
      const size = Math.min(step, sending - done);
      if (bucket !== undefined) await bucket.take(size);
      if (fault?.kind === "trickle") await sleep(fault.everyMs);
      const chunk = await object.read(first + done, size);
      if (response.destroyed) return;
      source.bytesServed += size;
      done += size;
      if (!response.write(chunk) && done < sending) await drained(response);
    }
    if (sending === length) response.end();
    else if (fault?.kind === "reset") afterSending(response, () => response.socket?.resetAndDestroy());
    else if (fault?.kind === "cut") afterSending(response, () => response.socket?.destroy());
  };

  const listen = async (port: number): Promise<void> => {
    server = createServer({ keepAliveTimeout: 60_000 }, (message, response) => {
      answer(message, response).catch((error: unknown) => response.destroy(error as Error));
    });
    server.on("connection", (socket) => {
      source.connections++;
      source.peakConnections = Math.max(source.peakConnections, source.connections);
      socket.on("close", () => source.connections--);
      socket.on("error", () => undefined);
    });
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen(port, host, resolve);
    });
  };

  const stop = (): Promise<void> =>
    new Promise((resolve) => {
      server.close(() => resolve());
      server.closeAllConnections();
    });

  const source = {
    url: "",
    port: 0,
    requests,
    requestCount: 0,
    bytesServed: 0,
    connections: 0,
    peakConnections: 0,
    etag: options.etag === undefined ? '"first"' : options.etag,
    lastModified: options.lastModified,
    latencyMs: options.latencyMs ?? 0,
    onRequest: undefined as HttpSource["onRequest"],
    limitTo: (bytesPerSecond: number): void => {
      bucket ??= new TokenBucket(bytesPerSecond);
      bucket.bytesPerSecond = bytesPerSecond;
    },
    inject: (fault: Fault, count = 1): void => {
      for (let n = 0; n < count; n++) injected.push(fault);
    },
    replace: (content: Buffer): void => {
      object = fromBuffer(content);
    },
    pause: stop,
    resume: (): Promise<void> => listen(source.port),
    close: async (): Promise<void> => {
      await stop();
      await object.close();
    },
    [Symbol.asyncDispose]: (): Promise<void> => source.close(),
  };
  await listen(0);
  source.port = (server!.address() as AddressInfo).port;
  source.url = `http://${host}:${source.port}${objectPath}`;
  return source;
}

function parseRequest(message: IncomingMessage, index: number, size: number): SourceRequest {
  const match = /^bytes=(\d+)-(\d*)$/.exec(message.headers.range ?? "");
  const start = match ? Number(match[1]) : 0;
  const end = match?.[2] ? Math.min(size, Number(match[2]) + 1) : size;
  return { index, path: message.url ?? "", start, end, ranged: match !== null, headers: message.headers };
}

function authorized(message: IncomingMessage, credentials: string): boolean {
  return message.headers.authorization === `Basic ${Buffer.from(credentials).toString("base64")}`;
}

function failsCondition(message: IncomingMessage, source: HttpSource): boolean {
  const match = message.headers["if-match"];
  if (match !== undefined) return match !== source.etag;
  const since = message.headers["if-unmodified-since"];
  if (since === undefined || source.lastModified === undefined) return false;
  return Math.floor(source.lastModified.getTime() / 1000) * 1000 > Date.parse(since);
}

function answerEmpty(response: ServerResponse, status: number, headers: Record<string, string>): void {
  response.writeHead(status, { "content-length": "0", ...headers }).end();
}

function drained(response: ServerResponse): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      response.off("drain", done).off("close", done);
      resolve();
    };
    response.on("drain", done).on("close", done);
  });
}

/** Waits until the kernel has what was written: a reset would otherwise overtake it. */
function afterSending(response: ServerResponse, then: () => void): void {
  response.flushHeaders();
  response.write("", () => setTimeout(then, 20));
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** Something to serve. What `read` returns is the caller's. */
interface ServedObject {
  size: number;
  read(offset: number, length: number): Buffer | Promise<Buffer>;
  close(): Promise<void>;
}

/** Beyond its end it goes on with zeros, for bodies that are too long. */
function fromBuffer(content: Buffer): ServedObject {
  return {
    size: content.length,
    read: (offset, length) =>
      offset + length <= content.length
        ? content.subarray(offset, offset + length)
        : Buffer.concat([content.subarray(offset), Buffer.alloc(length)], length),
    close: () => Promise.resolve(),
  };
}

async function openFile(path: string): Promise<ServedObject> {
  const file: FileHandle = await open(path, "r");
  const { size } = await file.stat();
  return {
    size,
    read: async (offset, length) => {
      const buffer = Buffer.allocUnsafeSlow(length);
      const { bytesRead } = await file.read(buffer, 0, length, offset);
      return buffer.fill(0, bytesRead);
    },
    close: () => file.close(),
  };
}
