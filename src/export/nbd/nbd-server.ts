import { closeSync } from "node:fs";
import { Acceptor } from "../../base/threads/acceptor.ts";
import type { ExportDirectory } from "../block-device.ts";
import { ExportTraffic } from "../export-traffic.ts";
import { formatListenAddress, type ListenAddress, parseListenAddress } from "../listen-address.ts";
import { adoptListeningSocket, type ListeningSocket, openListeningSocket } from "../listening-socket.ts";
import { SEND_BUFFER_BYTES, tuneTcpSocket, tuneUnixSocket } from "../socket-options.ts";
import { BufferPool } from "./buffer-pool.ts";
import { Connection, type ConnectionInfo, type ConnectionWatch, type NbdLog } from "./connection.ts";
import { DEFAULT_LIMITS, MAX_REFUSALS, type NbdLimits, REFUSAL_TIMEOUT_MS } from "./limits.ts";
import { StallWatch } from "./stall-watch.ts";
import type { TlsSettings } from "./tls.ts";

export interface NbdServerOptions {
  exports: ExportDirectory;
  /** Absent: no TLS. */
  tls?: TlsSettings;
  limits?: Partial<NbdLimits>;
  log: NbdLog;
  /** Where what clients do with an export is counted; default: nowhere that anybody looks. */
  traffic?: (exportName: string) => ExportTraffic;
  watch?: ConnectionWatch;
}

/** A socket that the server accepts connections from. */
export interface Listening {
  /** As bound, e.g. with the port that was chosen for 0. */
  readonly address: ListenAddress;
  /** The NBD URI of an export behind it. */
  uri(exportName: string): string;
  /** Stops accepting; connections live on. */
  close(): Promise<void>;
}

/**
 * Offers the devices of an `ExportDirectory` over NBD, on any number of listening sockets. All connections share one
 * pool of buffers, so that memory is bounded by the server and not by the number of its clients.
 */
export class NbdServer {
  readonly #options: NbdServerOptions;
  readonly #tls: TlsSettings;
  readonly #limits: NbdLimits;
  readonly #pool = new BufferPool();
  readonly #acceptor: Acceptor;
  readonly #listening = new Map<Listening, ListeningSocket>();
  readonly #connections = new Set<Connection>();
  readonly #refused = new Set<Connection>();
  readonly #stallWatch: StallWatch;
  /** Connections taken, and turned away because there were too many, since the start. */
  accepted = 0;
  turnedAway = 0;
  #sendBufferReported = false;
  #stopping = false;
  #onEmpty: (() => void) | undefined;

  constructor(options: NbdServerOptions) {
    this.#options = options;
    this.#tls = options.tls ?? { mode: "off", options: {} };
    this.#limits = { ...DEFAULT_LIMITS, ...options.limits };
    this.#stallWatch = new StallWatch(this.#pool, this.#limits.payloadStallMs, () => this.#connections);
    this.#acceptor = new Acceptor((errno) =>
      options.log("warn", `nbd: can't accept connections: ${errno}; trying on (raise the limit of open files)`),
    );
  }

  /** @throws UllageError `listen-address`, `listen-in-use`, `listen` */
  async listen(address: ListenAddress | string): Promise<Listening> {
    const parsed = typeof address === "string" ? parseListenAddress(address) : address;
    return this.#accept(await openListeningSocket(parsed));
  }

  /** Serves a listening socket that was opened for the process. */
  adopt(fd: number): Listening {
    return this.#accept(adoptListeningSocket(fd));
  }

  /** Every connection, in the order of their arrival. */
  connections(): ConnectionInfo[] {
    return [...this.#connections].map((connection) => connection.info);
  }

  /** Bytes of buffers in use, for metrics. */
  get bufferBytes(): number {
    return this.#pool.bytesInUse + this.#pool.budgetInUse;
  }

  /**
   * Stops accepting, answers the requests that have arrived, and closes every connection; those that take longer than
   * `graceMs` are cut. Operations that a cut connection had started may still run: its device knows of them.
   */
  async stop(graceMs: number): Promise<void> {
    this.#stopping = true;
    await Promise.all([...this.#listening.keys()].map((listening) => listening.close()));
    for (const connection of this.#refused) connection.destroy();
    for (const connection of this.#connections) connection.shutdown(graceMs);
    if (this.#connections.size > 0) await new Promise<void>((resolve) => (this.#onEmpty = resolve));
    this.#stallWatch.stop();
  }

  #accept(socket: ListeningSocket): Listening {
    const unix = socket.address.kind === "unix";
    const scheme = this.#tls.mode === "require" ? "nbds" : "nbd";
    const listening: Listening = {
      address: socket.address,
      uri: (name) => {
        const path = encodeURIComponent(name).replaceAll("%40", "@");
        if (socket.address.kind === "tcp") return `${scheme}://${formatListenAddress(socket.address)}/${path}`;
        return `${scheme}+unix:///${path}?socket=${encodeURI(socket.address.path)}`;
      },
      close: async () => {
        if (!this.#listening.delete(listening)) return;
        await this.#acceptor.remove(socket.fd);
        socket.close();
      },
    };
    this.#listening.set(listening, socket);
    this.#acceptor.add(socket.fd, (fd) => this.#connect(fd, unix));
    return listening;
  }

  #tuneUnix(fd: number): void {
    const granted = tuneUnixSocket(fd);
    if (granted >= SEND_BUFFER_BYTES || this.#sendBufferReported) return;
    this.#sendBufferReported = true;
    const message = `nbd: the system grants unix sockets ${granted} of ${SEND_BUFFER_BYTES} bytes for sending`;
    this.#options.log("info", `${message}; large reads are faster with a higher net.core.wmem_max`);
  }

  #connect(fd: number, unix: boolean): void {
    const { maxConnections, handshakeTimeoutMs } = this.#limits;
    const full = this.#connections.size >= maxConnections;
    if (this.#stopping || (full && this.#refused.size >= MAX_REFUSALS)) {
      if (!this.#stopping) this.turnedAway++;
      closeSync(fd);
      return;
    }
    if (full) this.turnedAway++;
    else this.accepted++;
    if (unix) this.#tuneUnix(fd);
    else tuneTcpSocket(fd);
    const { exports, log, traffic = () => new ExportTraffic(), watch = () => undefined } = this.#options;
    const set = full ? this.#refused : this.#connections;
    const connection = new Connection({
      id: this.accepted + this.turnedAway,
      fd,
      unix,
      exports,
      tls: this.#tls,
      pool: this.#pool,
      handshakeTimeoutMs: full ? REFUSAL_TIMEOUT_MS : handshakeTimeoutMs,
      refusal: full ? `too many connections: the limit is ${maxConnections}` : undefined,
      log,
      traffic,
      watch,
      closed: (closed) => {
        set.delete(closed);
        if (this.#connections.size === 0) this.#onEmpty?.();
      },
    });
    set.add(connection);
  }
}
