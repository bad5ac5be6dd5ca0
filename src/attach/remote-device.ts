import type { IoBuffer } from "../base/io-buffer.ts";
import { type Attachment, type BlockDevice, type Extent, ExtentState } from "../export/block-device.ts";
import { Command, CommandFlag } from "../nbd/protocol.ts";
import type { NbdClient } from "./nbd-client/client.ts";

/**
 * An export of another server as a device of ours. Everything is asynchronous. Where its bytes are is not asked (that
 * would have to be known at once): all of it counts as data.
 */
export class RemoteDevice implements BlockDevice {
  readonly #client: NbdClient;
  readonly state = "serving";

  constructor(client: NbdClient) {
    this.#client = client;
  }

  get size(): number {
    return this.#client.info.size;
  }

  get readOnly(): boolean {
    return this.#client.info.readOnly;
  }

  get lineage(): string {
    return this.#client.info.lineage;
  }

  tryRead(): boolean {
    return false;
  }

  read(offset: number, length: number, buffer: IoBuffer, at: number): Promise<void> {
    return this.#client.submit(Command.read, 0, offset, length, buffer.bytes.subarray(at, at + length));
  }

  tryWrite(): boolean {
    return false;
  }

  write(offset: number, length: number, buffer: IoBuffer, at: number): Promise<void> {
    return this.#client.submit(Command.write, 0, offset, length, buffer.bytes.subarray(at, at + length));
  }

  trim(offset: number, length: number): Promise<void> {
    return this.#client.submit(Command.trim, 0, offset, length);
  }

  zero(offset: number, length: number, { allocate, fast }: { allocate: boolean; fast: boolean }): Promise<void> {
    const flags = (allocate ? CommandFlag.noHole : 0) | (fast ? CommandFlag.fastZero : 0);
    return this.#client.submit(Command.writeZeroes, flags, offset, length);
  }

  flush(): Promise<void> {
    return this.#client.submit(Command.flush, 0, 0, 0);
  }

  async prefetch(offset: number, length: number): Promise<void> {
    await this.#client.submit(Command.cache, 0, offset, length).catch(() => undefined); // a later read will meet it
  }

  learnZeros(): undefined {
    return undefined;
  }

  extents(_offset: number, length: number): Extent[] {
    return [{ length, state: ExtentState.local }];
  }

  /** The one client, nbdfuse, never comes back after its connections broke: there is nothing to wait for. */
  attach(): Promise<Attachment> {
    return Promise.resolve({ broken: () => undefined, release: () => undefined });
  }
}
