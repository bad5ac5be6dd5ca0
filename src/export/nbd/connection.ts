import net from "node:net";
import { describeError, UllageError } from "../../base/errors.ts";
import type { Attachment, Client, ClientInfo, ExportDirectory } from "../block-device.ts";
import type { ExportTraffic } from "../export-traffic.ts";
import { formatListenAddress, isLoopback } from "../listen-address.ts";
import type { BufferPool } from "./buffer-pool.ts";
import type { HandshakeChannel } from "./handshake-channel.ts";
import { CLOSE_GRACE_MS, LINGER_MS } from "./limits.ts";
import { type Negotiated, Negotiation } from "./negotiation.ts";
import { ReceiveBuffer } from "./receive-buffer.ts";
import { ReplyWriter } from "./reply-writer.ts";
import { RequestMeter } from "./request-meter.ts";
import type { PayloadHolder } from "./stall-watch.ts";
import { secure, type TlsSettings } from "./tls.ts";
import { Transmission } from "./transmission.ts";

/** Unsent bytes of handshake replies above which the next option waits. */
const HANDSHAKE_OUTPUT_BYTES = 64 * 1024;
/** The device's failures are logged no more often than this; the client is told of each. */
const FAILURE_LOG_MS = 1_000;

/** See daemon/log.ts for the fields. */
export type NbdLog = (
  level: "info" | "warn" | "error",
  message: string,
  fields?: { address: string; volume?: string },
) => void;

/** Hears of clients that begin to use an export, and of those that have ended. */
export type ConnectionWatch = (what: "opened" | "closed", exportName: string, client: ClientInfo) => void;

export interface ConnectionOptions {
  id: number;
  fd: number;
  unix: boolean;
  exports: ExportDirectory;
  tls: TlsSettings;
  pool: BufferPool;
  handshakeTimeoutMs: number;
  refusal: string | undefined;
  log: NbdLog;
  /** Where what is done with an export is counted. */
  traffic: (exportName: string) => ExportTraffic;
  watch: ConnectionWatch;
  /** The socket is closed. */
  closed(connection: Connection): void;
}

/** A connection as people see it. */
export interface ConnectionInfo {
  id: number;
  /** `127.0.0.1:5123` or `unix` */
  address: string;
  tls: boolean;
  /** undefined during the handshake */
  export: string | undefined;
  writable: boolean;
  requests: number;
  /** bytes */
  read: number;
  written: number;
  inflight: number;
}

/**
 * One client, from accept to close:
 *
 *     handshake ...... Negotiation reads options; under TLS after STARTTLS
 *     transmission ... Transmission takes requests as they arrive
 *     closing ........ all replies are with the kernel, our side is shut; what the client still sends is thrown away
 *     closed ......... the socket is gone; operations that had started may still run
 *
 * The device is told `broken` at the end of transmission unless nothing was running, and `release` when the last
 * started operation has ended (durability rule 25).
 */
export class Connection implements HandshakeChannel, PayloadHolder {
  readonly #options: ConnectionOptions;
  readonly address: string;
  readonly #remote: boolean;
  readonly #received: ReceiveBuffer;
  #socket: net.Socket;
  #phase: "handshake" | "transmission" | "closing" | "closed" = "handshake";
  #paused = false;
  secure = false;
  /** The handshake waits for so many bytes; 0: it does not wait. */
  #wanted = 0;
  #wake: (() => void) | undefined;
  #timer: NodeJS.Timeout | undefined;
  #negotiated: Negotiated | undefined;
  #transmission: Transmission | undefined;
  #writer: ReplyWriter | undefined;
  #attached: Attachment | undefined;
  #clean = false;
  #lastFailureLog = -Infinity;

  constructor(options: ConnectionOptions) {
    this.#options = options;
    this.#received = new ReceiveBuffer(options.pool);
    const socket = new net.Socket({
      fd: options.fd,
      allowHalfOpen: true,
      onread: {
        buffer: () => this.#received.nextTarget(this.#paused || this.#phase === "closing"),
        callback: (length: number) => this.#arrived(length),
      },
    });
    this.#socket = socket;
    this.address = options.unix ? "unix" : remoteAddress(socket);
    this.#remote = !options.unix && !isLoopback(socket.remoteAddress ?? "");
    this.#watch(socket);
    void this.#serve();
  }

  get info(): ConnectionInfo {
    const transmission = this.#transmission;
    return {
      id: this.#options.id,
      address: this.address,
      tls: this.secure,
      export: this.#negotiated?.name,
      writable: this.#negotiated !== undefined && !this.#negotiated.readOnly,
      requests: transmission?.requests ?? 0,
      read: transmission?.readBytes ?? 0,
      written: transmission?.writtenBytes ?? 0,
      inflight: transmission?.inflight ?? 0,
    };
  }

  /**
   * Ends the connection: requests that have arrived are answered first, what takes longer than `graceMs` is cut off.
   */
  shutdown(graceMs: number): void {
    if (this.#phase !== "transmission") {
      if (this.#phase === "handshake") this.destroy();
      return;
    }
    this.#arm(graceMs);
    this.#transmission!.drain();
  }

  get holdsPayload(): boolean {
    return this.#received.chunk.budget > 0 || (this.#writer?.queuedPayloads ?? 0) > 0;
  }

  get progressBytes(): number {
    return this.#received.totalBytes + (this.#writer?.sentBytes ?? 0);
  }

  cut(reason: string): void {
    this.#log("warn", `connection cut: ${reason}`);
    this.destroy();
  }

  /** Closes the connection at once. */
  destroy(): void {
    this.#socket.destroy();
    this.#dead();
  }

  // ---- the handshake's channel -------------------------------------------------------------------------------------

  get hasUnread(): boolean {
    return this.#received.end > this.#received.start;
  }

  async read(length: number): Promise<Buffer> {
    this.#demandAlive(); // it may have ended while nobody waited for it: a timer would hold up the end of the process
    const received = this.#received;
    if (received.end - received.start < length) {
      this.#wanted = length;
      this.#arm(this.#options.handshakeTimeoutMs);
      const arrived = new Promise<void>((resolve) => (this.#wake = resolve));
      this.#setReading(true);
      await arrived;
      this.#disarm();
      this.#demandAlive();
    }
    const bytes = Buffer.from(received.chunk.bytes.subarray(received.start, received.start + length));
    received.start += length;
    if (!this.hasUnread) received.settle(0);
    return bytes;
  }

  async write(bytes: Buffer): Promise<void> {
    this.#demandAlive();
    const written = new Promise<void>((resolve) => this.#socket.write(bytes, () => resolve()));
    if (this.#socket.writableLength <= HANDSHAKE_OUTPUT_BYTES) return;
    this.#arm(this.#options.handshakeTimeoutMs);
    await written;
    this.#disarm();
  }

  #demandAlive(): void {
    if (this.#phase === "closed") throw new UllageError("nbd-gone", "the client is gone");
  }

  async startTls(): Promise<void> {
    const raw = this.#socket;
    const socket = await secure(raw, this.#options.tls, this.#options.handshakeTimeoutMs);
    this.#socket = socket;
    this.secure = true;
    this.#watch(socket);
    socket.on("data", (bytes: Buffer) => this.#arrivedSecurely(bytes));
    socket.pause();
    if (raw.destroyed || socket.destroyed) this.#dead();
  }

  // ---- life ----------------------------------------------------------------------------------------------------------

  async #serve(): Promise<void> {
    const { exports, tls, refusal } = this.#options;
    try {
      const negotiated = await new Negotiation(this, {
        exports,
        tlsMode: tls.mode,
        refusal,
        client: (writable) => this.#client(writable),
      }).run();
      if (negotiated === undefined) this.#shut();
      else this.#transmit(negotiated);
    } catch (error) {
      if (this.#phase !== "closed") this.#log("info", `connection ended: ${describeError(error)}`);
      this.destroy();
    }
  }

  #client(writable: boolean): Client {
    return {
      protocol: "nbd",
      address: this.address,
      remote: this.#remote,
      writable,
      close: (reason) => {
        this.#log("info", `closing the connection: ${reason}`);
        this.shutdown(CLOSE_GRACE_MS);
      },
    };
  }

  #transmit(negotiated: Negotiated): void {
    this.#attached = negotiated.attachment;
    if (this.#phase !== "handshake") {
      this.#phase = "transmission";
      this.#dead();
      return;
    }
    this.#negotiated = negotiated;
    this.#phase = "transmission";
    const { pool, fd, traffic } = this.#options;
    this.#tell("opened");
    const writer = (this.#writer = new ReplyWriter(pool, this.#socket, this.secure ? -1 : fd, () =>
      this.#transmission?.writable(),
    ));
    this.#transmission = new Transmission({
      ...negotiated,
      pool,
      received: this.#received,
      writer,
      meter: new RequestMeter(traffic(negotiated.name)),
      setReading: (reading) => this.#setReading(reading),
      defect: (error) => this.#defect(error),
      violation: (reason) => {
        this.#log("info", `connection ended: ${reason}`);
        this.destroy();
      },
      finished: (clean) => {
        this.#clean = clean;
        this.#release();
        this.#shut();
      },
      quiet: () => this.#release(),
      failed: (what, error) => this.#logFailure(what, error),
    });
    this.#transmission.start();
  }

  #watch(socket: net.Socket): void {
    socket.on("error", () => this.destroy());
    socket.on("end", () => this.destroy());
    socket.on("close", () => {
      this.#dead();
    });
  }

  /** @returns false to stop reading */
  #arrived(length: number): boolean {
    let reading = this.#take(() => this.#received.filled(length));
    if (reading && this.#phase === "transmission" && this.#received.receiveRest(this.#options.fd)) {
      reading = this.#take(() => undefined);
    }
    this.#paused = !reading;
    return reading;
  }

  #arrivedSecurely(bytes: Buffer): void {
    this.#setReading(this.#take(() => this.#received.append(bytes)));
  }

  /** @param receive puts what arrived into the receive buffer @returns whether to read on */
  #take(receive: () => void): boolean {
    if (this.#phase === "closing" || this.#phase === "closed") return true;
    try {
      receive();
      return this.#phase === "transmission" ? this.#transmission!.arrived() : this.#arrivedInHandshake();
    } catch (error) {
      this.#defect(error);
      return false;
    }
  }

  #arrivedInHandshake(): boolean {
    const available = this.#received.end - this.#received.start;
    this.#received.settle(Math.max(available, this.#wanted));
    if (available < this.#wanted) return true;
    this.#wanted = 0;
    this.#wake?.();
    return false;
  }

  #setReading(reading: boolean): void {
    this.#paused = !reading;
    if (reading) this.#socket.resume();
    else this.#socket.pause();
  }

  /** Nothing more will be sent. Reading goes on, since closing with unread bytes could cost the client our last ones. */
  #shut(): void {
    if (this.#phase === "closed") return;
    this.#phase = "closing";
    this.#arm(LINGER_MS);
    this.#socket.end();
    this.#setReading(true);
  }

  #dead(): void {
    if (this.#phase === "closed") return;
    this.#phase = "closed";
    this.#disarm();
    this.#wake?.();
    const transmission = this.#transmission;
    if (transmission !== undefined) {
      this.#clean ||= transmission.saidGoodbye;
      transmission.abandon();
    }
    this.#received.close();
    if (this.#attached !== undefined) {
      this.#attached.broken();
      if (transmission === undefined || transmission.inflight === 0) this.#release();
    }
    this.#options.closed(this);
  }

  #release(): void {
    const attached = this.#attached;
    if (attached === undefined) return;
    this.#attached = undefined;
    attached.release(this.#clean);
    this.#tell("closed");
  }

  #tell(what: "opened" | "closed"): void {
    if (this.#negotiated === undefined) return;
    const { name, readOnly } = this.#negotiated;
    const client = { protocol: "nbd", address: this.address, remote: this.#remote, writable: !readOnly } as const;
    this.#options.watch(what, name, client);
  }

  #arm(ms: number): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.destroy(), ms);
  }

  #disarm(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  /** An error of ours, not of the client or the device: it must not reach the others. */
  #defect(error: unknown): void {
    const stack = error instanceof Error ? error.stack : String(error);
    this.#log("error", `connection ended by a defect in the server: ${stack}`);
    this.destroy();
  }

  #logFailure(what: string, error: unknown): void {
    const now = performance.now();
    if (now - this.#lastFailureLog < FAILURE_LOG_MS) return;
    this.#lastFailureLog = now;
    const name = this.#negotiated?.name ?? "";
    this.#log("warn", `${what} of export "${name}" failed: ${describeError(error)}`);
  }

  #log(level: "info" | "warn" | "error", message: string): void {
    const volume = this.#negotiated?.name;
    const fields = { address: this.address, ...(volume === undefined ? {} : { volume }) };
    this.#options.log(level, `nbd: ${this.address}: ${message}`, fields);
  }
}

function remoteAddress(socket: net.Socket): string {
  if (socket.remoteAddress === undefined) return "unknown";
  return formatListenAddress({ kind: "tcp", host: socket.remoteAddress, port: socket.remotePort ?? 0 });
}
