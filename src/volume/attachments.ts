import { UllageError } from "../base/errors.ts";
import type { Attachment, Client } from "../export/block-device.ts";

/*
 * The connections of a volume. A connection is attached, then perhaps broken (its socket is gone while operations that it
 * started still run), then released. A newcomer waits until nothing is broken (durability rule 25). While remote writers
 * are attached, or vanished with writes that are not flushed yet, the volume's log says so durably (rule 16).
 */

export interface AttachmentsHost {
  /** Why a client is refused at the moment, if it is. */
  refusal(writable: boolean): UllageError | undefined;
  /** Durably notes that remote writers are (or are no longer) connected. */
  noteRemoteWriters(connected: boolean): Promise<void>;
  /** Makes everything written so far durable. */
  flush(): Promise<void>;
  warn(message: string): void;
}

class Stay implements Attachment {
  readonly client: Client;
  readonly released: Promise<void>;
  isBroken = false;
  readonly #resolve: () => void;
  readonly #onRelease: (stay: Stay) => void;
  #done = false;

  constructor(client: Client, onRelease: (stay: Stay) => void) {
    this.client = client;
    this.#onRelease = onRelease;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.released = promise;
    this.#resolve = resolve;
  }

  broken(): void {
    this.isBroken = true;
  }

  release(): void {
    if (this.#done) return;
    this.#done = true;
    this.#onRelease(this);
    this.#resolve();
  }
}

export class Attachments {
  readonly #host: AttachmentsHost;
  readonly #stays = new Set<Stay>();
  /** What the log says, or will say once the pending change is durable. */
  #remoteNoted: boolean;
  #noting: Promise<void> = Promise.resolve();

  constructor(host: AttachmentsHost, remoteNoted: boolean) {
    this.#host = host;
    this.#remoteNoted = remoteNoted;
  }

  clients(): Client[] {
    return [...this.#stays].map((stay) => stay.client);
  }

  async attach(client: Client): Promise<Attachment> {
    for (;;) {
      const dying = [...this.#stays].filter((stay) => stay.isBroken);
      if (dying.length === 0) break;
      await Promise.all(dying.map((stay) => stay.released));
    }
    const refusal = this.#host.refusal(client.writable);
    if (refusal) throw refusal;
    const stay = new Stay(client, (gone) => this.#released(gone));
    this.#stays.add(stay);
    if (!client.remote || !client.writable) return stay;
    try {
      await this.#note(true);
    } catch (error) {
      stay.release();
      throw error;
    }
    return stay;
  }

  /** Notes are made one after the other, and only when they change something. */
  #note(connected: boolean): Promise<void> {
    const turn = this.#noting.then(async () => {
      if (this.#remoteNoted === connected) return;
      if (!connected && this.#hasRemoteWriters()) return;
      if (connected) {
        await this.#host.noteRemoteWriters(true);
        this.#remoteNoted = true;
        return;
      }
      await this.#host.flush(); // what they wrote is durable before they are forgotten
      this.#remoteNoted = false;
      await this.#host.noteRemoteWriters(false);
    });
    this.#noting = turn.catch(() => undefined);
    return turn;
  }

  #hasRemoteWriters(): boolean {
    return [...this.#stays].some((stay) => stay.client.remote && stay.client.writable);
  }

  #released(stay: Stay): void {
    this.#stays.delete(stay);
    if (!stay.client.remote || !stay.client.writable || this.#hasRemoteWriters()) return;
    this.#note(false).catch((error: Error) => {
      this.#host.warn(`can't note that the last remote writer has left: ${error.message}`);
    });
  }

  /** Asks all connections to end. */
  closeAll(reason: string): void {
    for (const stay of this.#stays) stay.client.close(reason);
  }

  /** Resolves when pending notes are made. */
  async settled(): Promise<void> {
    await this.#noting;
  }
}
