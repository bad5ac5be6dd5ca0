import { addressOf } from "./posix.ts";

/**
 * A buffer that system calls fill and drain by address. Its memory never moves and is never shared with Node's buffer
 * pool; the address is taken once, because taking it per call would cost more than the call.
 */
export class IoBuffer {
  readonly bytes: Buffer;
  readonly address: number;
  readonly length: number;

  /** @param memory bytes, whose content is undefined (not zeros); or memory that does not move either, to be used as it is */
  constructor(memory: number | Buffer) {
    this.bytes = typeof memory === "number" ? Buffer.allocUnsafeSlow(memory) : memory;
    this.address = addressOf(this.bytes);
    this.length = this.bytes.length;
  }

  /** A new buffer holding a copy of `source`. */
  static from(source: Uint8Array): IoBuffer {
    const buffer = new IoBuffer(source.length);
    buffer.bytes.set(source);
    return buffer;
  }
}
