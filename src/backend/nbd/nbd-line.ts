import { ClientConnection, type ConnectionOwner, type OpenOptions } from "../../nbd/client-connection.ts";
import type { ClientRequest } from "../../nbd/client-request.ts";
import type { ExportInfo } from "../../nbd/export-info.ts";
import { Command, NbdError } from "../../nbd/protocol.ts";
import { replyError } from "./nbd-errors.ts";
import { timedOut, unreachable } from "../source-errors.ts";

export interface LineLimits {
  /** Longest wait for any bytes while requests are under way. */
  idleTimeoutMs: number;
  /** A request may take the idle timeout plus what is under way before it at this rate, however steadily it trickles. */
  minBytesPerSecond: number;
  /** A connection over which nothing is asked for so long is closed. */
  keepMs: number;
}

interface Asked extends ClientRequest {
  readonly sentAt: number;
  readonly deadline: number;
  settle(error?: Error): void;
}

/** A goodbye is only manners: nothing is under way that anybody waits for. */
const GOODBYE_MS = 1_000;

/**
 * One connection to an export, and what was asked over it. It is *open* until it breaks, is silent for too long, or the
 * server says that it is shutting down; then everything that was not answered fails, once, and nothing more is asked.
 */
export class NbdLine implements ConnectionOwner {
  readonly info: ExportInfo;
  /** Whether base:allocation was agreed on. */
  readonly tellsZeros: boolean;
  readonly #where: string;
  readonly #limits: LineLimits;
  readonly #connection: ClientConnection;
  readonly #asked = new Map<number, Asked>();
  #onEnd: () => void = () => undefined;
  #nextCookie = 1;
  #bytes = 0;
  #timer: NodeJS.Timeout | undefined;
  #keepTimer: NodeJS.Timeout | undefined;
  /** Why it ended, where we know better than the socket. */
  #failure: Error | undefined;
  open = true;

  private constructor(connection: ClientConnection, where: string, limits: LineLimits) {
    this.#connection = connection;
    this.#where = where;
    this.#limits = limits;
    this.info = connection.negotiated.info;
    this.tellsZeros = connection.negotiated.contextId !== undefined;
  }

  /** @throws as `ClientConnection.open` */
  static async connect(options: OpenOptions, where: string, limits: LineLimits): Promise<NbdLine> {
    const connection = await ClientConnection.open(options);
    const line = new NbdLine(connection, where, limits);
    connection.start(line);
    return line;
  }

  /** Called once, when it is not open any more. */
  set onEnd(call: () => void) {
    this.#onEnd = call;
    if (!this.open) call();
  }

  /** Bytes that are asked for and not here. */
  get load(): number {
    return this.#bytes;
  }

  /** @param data gets the bytes, and belongs to the request until it has settled @throws SourceError */
  read(offset: number, length: number, data: Buffer): Promise<void> {
    return this.#ask(Command.read, offset, length, data, undefined);
  }

  /** @param takeExtent gets the extents of base:allocation @throws SourceError */
  blockStatus(offset: number, length: number, takeExtent: (length: number, flags: number) => void): Promise<void> {
    return this.#ask(Command.blockStatus, offset, length, undefined, takeExtent);
  }

  /** What is under way fails. */
  close(error: Error): void {
    if (!this.open) return;
    this.#connection.goodbye(GOODBYE_MS);
    this.#end(error);
  }

  // ---- the connection's owner --------------------------------------------------------------------------------------

  find(cookie: number): Asked | undefined {
    return this.#asked.get(cookie);
  }

  settled(request: Asked): void {
    this.#asked.delete(request.cookie);
    if (request.command === Command.read) this.#bytes -= request.length;
    if (this.#asked.size === 0) this.#rest();
    if (request.error === 0) return request.settle();
    const what =
      request.command === Command.read ? `read of ${request.length} bytes at ${request.offset}` : "block status";
    request.settle(replyError(this.#where, what, request.error, request.message));
    if (request.error === NbdError.ESHUTDOWN) this.close(unreachable(`${this.#where} is shutting down`));
  }

  ended(_: ClientConnection, reason: string): void {
    this.#end(this.#failure ?? unreachable(`${this.#where} broke the connection: ${reason}`));
  }

  // ------------------------------------------------------------------------------------------------------------------

  #ask(
    command: number,
    offset: number,
    length: number,
    data: Buffer | undefined,
    takeExtent: ((length: number, flags: number) => void) | undefined,
  ): Promise<void> {
    if (!this.open) return Promise.reject(unreachable(`${this.#where} broke the connection`));
    return new Promise((resolve, reject) => {
      const cookie = this.#nextCookie++;
      const sentAt = performance.now();
      if (command === Command.read) this.#bytes += length;
      const request: Asked = {
        cookie,
        command,
        flags: 0,
        offset,
        length,
        data,
        received: 0,
        error: 0,
        message: "",
        ...(takeExtent === undefined ? {} : { takeExtent }),
        sentAt,
        deadline: sentAt + this.#limits.idleTimeoutMs + (this.#bytes / this.#limits.minBytesPerSecond) * 1000,
        settle: (error) => (error === undefined ? resolve() : reject(error)),
      };
      if (this.#nextCookie > 0xffffffff) this.#nextCookie = 1; // those of long ago are answered, or the line is gone
      clearTimeout(this.#keepTimer);
      this.#asked.set(cookie, request);
      this.#connection.send(request, undefined);
      this.#timer ??= setInterval(() => this.#watch(), this.#limits.idleTimeoutMs / 8);
    });
  }

  #watch(): void {
    const now = performance.now();
    // In the order of their submission, which is that of their deadlines unless much was answered in between.
    const oldest = this.#asked.values().next().value!;
    const heardAt = Math.max(this.#connection.heardAt, oldest.sentAt);
    if (now - heardAt > this.#limits.idleTimeoutMs) {
      this.#giveUp(`${this.#where} sent nothing for ${this.#limits.idleTimeoutMs} ms`);
    } else if (now > oldest.deadline) {
      this.#giveUp(`${this.#where} did not answer in ${Math.round(now - oldest.sentAt)} ms`);
    }
  }

  #giveUp(message: string): void {
    this.#failure = timedOut(message);
    this.#connection.destroy(message);
  }

  #end(error: Error): void {
    if (!this.open) return;
    this.open = false;
    this.#stopTimer();
    const asked = [...this.#asked.values()];
    this.#asked.clear();
    this.#bytes = 0;
    for (const request of asked) request.settle(error);
    this.#onEnd();
  }

  #rest(): void {
    this.#stopTimer();
    this.#keepTimer = setTimeout(() => this.close(unreachable(`${this.#where} was left`)), this.#limits.keepMs).unref();
  }

  #stopTimer(): void {
    clearInterval(this.#timer);
    clearTimeout(this.#keepTimer);
    this.#timer = undefined;
  }
}
