import type { ExportDirectory } from "../../export/block-device.ts";
import type { ExportTraffic } from "../../export/export-traffic.ts";
import { formatListenAddress, isLocalAddress, type ListenAddress } from "../../export/listen-address.ts";
import type { ConnectionWatch } from "../../export/nbd/connection.ts";
import { NbdServer } from "../../export/nbd/nbd-server.ts";
import type { TlsSettings } from "../../export/nbd/tls.ts";
import type { Warning } from "../health/health.ts";
import type { Log } from "../log.ts";
import type { ListenerView } from "../views.ts";

/** An address, or a listening socket that the process was started with. */
export type ListenTarget = ListenAddress | { kind: "fd"; fd: number };

/** How NBD is served. */
export interface NbdOptions {
  /** Default: no TLS. */
  tls?: TlsSettings;
}

/** For metrics. */
export interface NbdFigures {
  /** open, those in the handshake included */
  connections: number;
  /** since the start; those turned away found the limit reached */
  accepted: number;
  turnedAway: number;
  /** requests that wait for a volume, of all connections */
  inflight: number;
  bufferBytes: number;
}

/** The NBD server of a data directory, from its first listener on. */
export class NbdListeners {
  readonly listeners: ListenerView[] = [];
  readonly #uris: ((exportName: string) => string)[] = [];
  readonly warnings: Warning[] = [];
  readonly #exports: ExportDirectory;
  readonly #traffic: (exportName: string) => ExportTraffic;
  readonly #watch: ConnectionWatch;
  readonly #log: Log;
  #server: NbdServer | undefined;

  /** @param traffic where what clients do with an export is counted */
  constructor(
    exports: ExportDirectory,
    traffic: (exportName: string) => ExportTraffic,
    watch: ConnectionWatch,
    log: Log,
  ) {
    this.#exports = exports;
    this.#traffic = traffic;
    this.#watch = watch;
    this.#log = log;
  }

  /** @throws UllageError `listen-in-use`, `listen` */
  async listen(targets: readonly ListenTarget[], options: NbdOptions): Promise<void> {
    const { tls } = options;
    this.#server ??= new NbdServer({
      exports: this.#exports,
      traffic: this.#traffic,
      watch: this.#watch,
      log: this.#log,
      ...(tls === undefined ? {} : { tls }),
    });
    for (const target of targets) {
      const listening = target.kind === "fd" ? this.#server.adopt(target.fd) : await this.#server.listen(target);
      const { address } = listening;
      this.listeners.push({ protocol: "nbd", address: formatListenAddress(address), uri: listening.uri("") });
      this.#uris.push((name) => listening.uri(name));
      if (!isLocalAddress(address) && tls?.mode !== "require") this.#warnOpen(formatListenAddress(address));
    }
  }

  #warnOpen(address: string): void {
    const message = `NBD on ${address} is open to other machines without TLS: use --tls require, or a local address`;
    this.warnings.push({ code: "nbd-open", message });
    this.#log("warn", message);
  }

  /** Where clients reach an export: one URI for each listener. */
  urisOf(exportName: string): string[] {
    return this.#uris.map((uri) => uri(exportName));
  }

  figures(): NbdFigures {
    const server = this.#server;
    const connections = server?.connections() ?? [];
    return {
      connections: connections.length,
      accepted: server?.accepted ?? 0,
      turnedAway: server?.turnedAway ?? 0,
      inflight: connections.reduce((sum, { inflight }) => sum + inflight, 0),
      bufferBytes: server?.bufferBytes ?? 0,
    };
  }

  /** Connections may finish what they started, for so long; then they are closed. */
  async stop(graceMs: number): Promise<void> {
    const server = this.#server;
    this.#server = undefined;
    this.listeners.length = 0;
    this.#uris.length = 0;
    await server?.stop(graceMs);
  }
}
