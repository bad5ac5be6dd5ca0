import { UllageError, IoError } from "../../base/errors.ts";
import type { Clock } from "../../base/clock.ts";
import { type MessageSocket, MessageSockets } from "../../base/threads/message-sockets.ts";
import { AF_UNIX, closeDescriptor, connect, errno, errnoName, streamSocket } from "../../base/posix.ts";
import { unixSocketAddress } from "../../base/socket-address.ts";
import { decodeProblem } from "./problem.ts";
import type { QuestionName, Questions } from "./questions.ts";
import { encode, framing, headerBytes, maxBodyBytes, readHeader, Request, type RequestCode, Result } from "./wire.ts";

/** See `MessageLimits`: what comes unasked is bounded by the manager. */
const LIMITS = { unanswered: 4096, queued: 4096 };
const FIRST_RETRY_MS = 20;
const LAST_RETRY_MS = 1000;
/** A manager that has said nothing for so long, though it owes an answer, is asked whether it is there ... */
const QUIET_MS = 5000;
/** ... and given up after so much more. */
const SILENT_MS = 15_000;
const WATCH_MS = 1000;

/** What a request is answered with; descriptors are the caller's. */
export interface Reply {
  body: Buffer;
  descriptors: number[];
}

/** One request, until it is answered: it outlives the connection it was sent over. */
interface Pending {
  request: RequestCode;
  /**
   * Made when it is sent: tokens change with the connection. What it throws is the request's end.
   * @returns undefined: not yet, `resend` will be called
   */
  body(): Buffer | undefined;
  resolve(reply: Reply): void;
  reject(error: Error): void;
}

export interface ManagerClientOptions {
  path: string;
  clock: Clock;
  /** Uniform in [0, 1): spreads reconnects. */
  random(): number;
  log(level: "info" | "warn", message: string): void;
  /** How long a request waits for a manager that can't be reached, ms; default 60,000. */
  patienceMs?: number;
}

/** Who has to do something before its requests can be sent again over a new connection. */
export interface Reopener {
  /** @param generation of the new connection */
  reopen(generation: number): void;
  /** A notification; see ready-news.ts. */
  notified(body: Buffer): void;
}

/**
 * A connection to a blob manager that comes back. Requests of a connection that broke are sent again over the next one,
 * after the blobs they are about were opened again; nobody sees an error while that takes no longer than `patienceMs`.
 *
 *     connecting --> connected --lost--> connecting        generation + 1
 *          \____________\___________________________close--> closed
 */
export class ManagerClient {
  readonly #options: ManagerClientOptions;
  readonly #sockets = new MessageSockets(framing, LIMITS);
  readonly #pending = new Map<bigint, Pending>();
  /** The connection that a request went over, and is unanswered on. */
  readonly #sentOver = new Map<bigint, number>();
  readonly #reopeners = new Set<Reopener>();
  readonly #closing = new AbortController();
  #socket: MessageSocket | undefined;
  #tag = 0n;
  #generation = 1;
  #heardAt = 0;
  #lostAt: number;
  #trouble = "it was not tried yet";
  readonly #loop: Promise<void>;

  constructor(options: ManagerClientOptions) {
    this.#options = options;
    this.#lostAt = options.clock.now();
    this.#loop = this.#run();
  }

  /** Counts connections; a token belongs to one. */
  get generation(): number {
    return this.#generation;
  }

  /** Its blobs are opened again over every new connection. */
  register(reopener: Reopener): () => void {
    this.#reopeners.add(reopener);
    return () => this.#reopeners.delete(reopener);
  }

  /**
   * @param body see `Pending.body`
   * @param signal tells the manager to give it up
   * @throws IoError EIO when the manager stays away, UllageError `closed`, the reason of `signal`
   */
  async request(request: RequestCode, body: () => Buffer | undefined, signal?: AbortSignal): Promise<Reply> {
    signal?.throwIfAborted();
    if (this.#closing.signal.aborted) throw this.#closing.signal.reason as Error;
    const tag = ++this.#tag;
    const { promise, resolve, reject } = Promise.withResolvers<Reply>();
    this.#pending.set(tag, { request, body, resolve, reject });
    const onAbort = (): void => {
      if (!this.#pending.delete(tag)) return;
      this.#cancel(tag);
      reject(signal!.reason as Error);
    };
    signal?.addEventListener("abort", onAbort, { once: true });
    this.#send(tag);
    try {
      return await promise;
    } finally {
      signal?.removeEventListener("abort", onAbort);
    }
  }

  /** @throws as `request`; what the manager answers that it failed with; UllageError `too-long` */
  async ask<Name extends QuestionName>(
    name: Name,
    asked: Questions[Name]["asked"],
    signal?: AbortSignal,
  ): Promise<Questions[Name]["answer"]> {
    const question = Buffer.from(JSON.stringify({ name, asked }));
    if (question.length > maxBodyBytes) {
      throw new UllageError("too-long", `a request to the blob manager has ${maxBodyBytes} bytes at most`, {
        hint: "the address of the source is too long",
      });
    }
    const { body, descriptors } = await this.request(Request.ask, () => question, signal);
    descriptors.forEach(closeDescriptor);
    if (body.length < 4 || body.readUInt32LE(0) !== Result.success) {
      throw decodeProblem(body.subarray(4), `the blob manager could not answer '${name}'`);
    }
    return JSON.parse(body.toString("utf8", 4)) as Questions[Name]["answer"];
  }

  /** What could not be sent before can be now. */
  resend(): void {
    for (const tag of this.#pending.keys()) this.#send(tag);
  }

  #send(tag: bigint): void {
    const pending = this.#pending.get(tag);
    if (this.#socket === undefined || pending === undefined || this.#sentOver.get(tag) === this.#generation) return;
    let body: Buffer | undefined;
    try {
      body = pending.body();
    } catch (error) {
      this.#pending.delete(tag);
      pending.reject(error as Error);
      return;
    }
    if (body === undefined) return;
    this.#sentOver.set(tag, this.#generation);
    if (this.#sentOver.size === 1) this.#heardAt = this.#options.clock.now();
    const header = { tag, request: pending.request, version: 2, reply: false, needReply: true } as const;
    this.#socket.send(encode(header, body));
  }

  #cancel(tag: bigint): void {
    if (this.#sentOver.get(tag) !== this.#generation) return;
    this.#sentOver.delete(tag);
    const body = Buffer.alloc(8);
    body.writeBigUInt64LE(tag);
    const header = { tag: ++this.#tag, request: Request.cancel, version: 2, reply: false, needReply: false } as const;
    this.#socket?.send(encode(header, body));
  }

  // ---- the connection ----------------------------------------------------------------------------------------------

  async #run(): Promise<void> {
    const { clock } = this.#options;
    const { signal } = this.#closing;
    for (let retryMs = FIRST_RETRY_MS; !signal.aborted;) {
      const ended = this.#connect();
      if (ended !== undefined) {
        retryMs = FIRST_RETRY_MS;
        await this.#attend(ended);
      } else {
        this.#giveUpLate();
      }
      await clock.sleep(retryMs * (0.5 + this.#options.random() / 2), signal).catch(() => undefined);
      retryMs = Math.min(retryMs * 2, LAST_RETRY_MS);
    }
  }

  /** @returns what resolves when the connection has ended; undefined when there is none */
  #connect(): Promise<void> | undefined {
    const { path } = this.#options;
    const fd = streamSocket(AF_UNIX);
    if (fd < 0) return this.#failed(`no socket: ${errnoName(errno())}`);
    if (connect(fd, unixSocketAddress(path)) !== 0) {
      const code = errnoName(errno());
      closeDescriptor(fd);
      return this.#failed(`${path}: ${code}`);
    }
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#socket = this.#sockets.adopt(fd, {
      message: (bytes, descriptors) => this.#receive(bytes, descriptors),
      closed: (reason) => {
        this.#disconnected(reason);
        resolve();
      },
    });
    this.#heardAt = this.#options.clock.now();
    for (const reopener of this.#reopeners) reopener.reopen(this.#generation);
    this.resend();
    return promise;
  }

  #failed(reason: string): undefined {
    this.#trouble = reason;
    return undefined;
  }

  #disconnected(reason: string): void {
    if (!this.#closing.signal.aborted) this.#options.log("warn", `the blob manager is gone (${reason}): reconnecting`);
    this.#trouble = reason;
    this.#socket = undefined;
    this.#generation++;
    this.#sentOver.clear();
    this.#lostAt = this.#options.clock.now();
  }

  /** Looks after a connection until it has ended. */
  async #attend(ended: Promise<void>): Promise<void> {
    const { clock } = this.#options;
    const { generation } = this;
    let asked = false;
    while (this.#generation === generation) {
      const stop = new AbortController();
      await Promise.race([ended, clock.sleep(WATCH_MS, stop.signal).catch(() => undefined)]);
      stop.abort(new Error("waited enough"));
      const silentMs = clock.now() - this.#heardAt;
      if (this.#sentOver.size === 0 || silentMs < QUIET_MS) asked = false;
      else if (silentMs > QUIET_MS + SILENT_MS) this.#socket?.close();
      else if (!asked) {
        asked = true;
        this.#socket?.send(
          encode(
            { tag: ++this.#tag, request: Request.noop, version: 2, reply: false, needReply: true },
            Buffer.alloc(0),
          ),
        );
      }
    }
  }

  /** Nobody waits for ever for a manager that does not come. */
  #giveUpLate(): void {
    const { clock, patienceMs = 60_000, path } = this.#options;
    if (clock.now() - this.#lostAt < patienceMs) return;
    this.#rejectAll(new IoError("EIO", `the blob manager at ${path} can't be reached: ${this.#trouble}`));
  }

  #rejectAll(error: Error): void {
    const pending = [...this.#pending.values()];
    this.#pending.clear();
    for (const each of pending) each.reject(error);
  }

  #receive(bytes: Buffer, descriptors: number[]): void {
    this.#socket?.answered();
    this.#heardAt = this.#options.clock.now();
    const header = readHeader(bytes);
    const body = bytes.subarray(headerBytes);
    if (typeof header !== "string" && header.request === Request.ready && !header.reply) {
      descriptors.forEach(closeDescriptor);
      for (const reopener of this.#reopeners) reopener.notified(body);
      return;
    }
    const pending = typeof header === "string" ? undefined : this.#pending.get(header.tag);
    if (typeof header === "string" || !header.reply || (pending && pending.request !== header.request)) {
      descriptors.forEach(closeDescriptor);
      this.#socket?.close(); // whatever this is, it does not speak the protocol
      return;
    }
    this.#sentOver.delete(header.tag);
    this.#pending.delete(header.tag);
    if (pending === undefined) descriptors.forEach(closeDescriptor);
    else pending.resolve({ body, descriptors });
  }

  /** What is pending is rejected. */
  async close(): Promise<void> {
    const reason = new UllageError("closed", "the connection to the blob manager was closed");
    this.#closing.abort(reason);
    this.#sentOver.clear();
    this.#rejectAll(reason);
    await this.#sockets.close();
    await this.#loop;
  }
}
