import { readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { describeError } from "../../base/errors.ts";
import { MessageSockets } from "../../base/threads/message-sockets.ts";
import { closeDescriptor, peerCredentials } from "../../base/posix.ts";
import type { CachedBlob } from "../cached-blob.ts";
import { LegacyRangeMap, legacySuffix } from "./legacy-range-map.ts";
import { type BlobStore, ManagerConnection } from "./manager-connection.ts";
import type { Answerer } from "./questions.ts";
import { framing } from "./wire.ts";

/** Connections at once; each costs a thread's attention and a few buffers. */
const MAX_CONNECTIONS = 256;
/** See `MessageLimits`. */
const LIMITS = { unanswered: 128, queued: 1024 };

export interface BlobManagerOptions {
  store: BlobStore;
  dataDir: string;
  /** Who may connect besides root and this process's own user. */
  allowedUsers?: readonly number[];
  allowedGroup?: number;
  /** Finds and makes blobs for daemons whose cache this is. */
  answerer?: Answerer;
  log(level: "info" | "warn", message: string): void;
}

/**
 * The blob cache as a service: hands descriptors of cache files to other processes on this host, and fetches for them
 * what they miss. Connections are its own; who listens gives them to `adopt`.
 */
export class BlobManager {
  readonly #options: BlobManagerOptions;
  readonly #sockets = new MessageSockets(framing, LIMITS);
  readonly #connections = new Set<ManagerConnection>();
  readonly #legacy = new Map<string, { map: LegacyRangeMap; users: number }>();

  constructor(options: BlobManagerOptions) {
    this.#options = options;
    const blobs = join(options.dataDir, "blobs");
    // A range map of an earlier life is not believed by anybody.
    for (const name of readdirSync(blobs)) if (/\.range_map(\.new)?$/.test(name)) rmSync(join(blobs, name));
  }

  get connections(): number {
    return this.#connections.size;
  }

  /** Serves a connection of a unix socket, or closes it at once when its peer may not be here. */
  adopt(fd: number): void {
    const { store, answerer } = this.#options;
    const warn = (message: string): void => this.#options.log("warn", `blob manager: ${message}`);
    const peer = peerCredentials(fd);
    if (peer === undefined || !this.#isAllowed(peer)) {
      warn(`user ${peer?.uid ?? "unknown"} (process ${peer?.pid ?? "?"}) may not connect`);
      closeDescriptor(fd);
      return;
    }
    if (this.#connections.size >= MAX_CONNECTIONS) {
      warn(`there are ${MAX_CONNECTIONS} connections already; process ${peer.pid} is turned away`);
      closeDescriptor(fd);
      return;
    }
    const connection = new ManagerConnection({
      store,
      ...(answerer === undefined ? {} : { answerer }),
      trusted: peer.uid === 0 || peer.uid === process.geteuid?.(),
      legacyMap: (blob) => this.#legacyMap(blob),
      refused: (reason) => warn(`process ${peer.pid} loses its connection: ${reason}`),
    });
    this.#connections.add(connection);
    const socket = this.#sockets.adopt(fd, {
      message: (bytes, descriptors) => {
        descriptors.forEach(closeDescriptor); // nobody asked for them
        connection.receive(bytes);
      },
      closed: () => {
        this.#connections.delete(connection);
        void connection.end().catch((error: unknown) => warn(describeError(error)));
      },
    });
    connection.begin(socket);
  }

  #isAllowed({ uid, gid }: { uid: number; gid: number }): boolean {
    const { allowedUsers = [], allowedGroup } = this.#options;
    return uid === 0 || uid === process.geteuid?.() || allowedUsers.includes(uid) || gid === allowedGroup;
  }

  /** The range map for version-1 clients is there until `release` was called as often as this. */
  #legacyMap(blob: CachedBlob): { release(): void } {
    const { id } = blob;
    let entry = this.#legacy.get(id);
    if (entry === undefined) {
      const path = join(this.#options.dataDir, "blobs", `${id}${legacySuffix}`);
      entry = { map: new LegacyRangeMap(path, blob), users: 0 };
      this.#legacy.set(id, entry);
    }
    const held = entry;
    held.users++;
    return {
      release: () => {
        held.users--;
        if (held.users > 0) return;
        this.#legacy.delete(id);
        held.map.close();
      },
    };
  }

  /** Ends every connection; what their clients wait for is given up, and the blobs are released. */
  async close(): Promise<void> {
    const connections = [...this.#connections];
    await this.#sockets.close();
    await Promise.all(connections.map((connection) => connection.end()));
  }
}
