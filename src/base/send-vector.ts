import type { IoBuffer } from "./io-buffer.ts";
import { addressOf, EAGAIN, errno, sendMessage } from "./posix.ts";

/**
 * Ranges of `IoBuffer`s that one sendmsg(2) hands to a socket. Filled and sent within one turn of the event loop, so
 * one instance serves all sockets of a thread. Layouts: `struct iovec` and `struct msghdr` of Linux LP64.
 */
export class SendVector {
  readonly #iovecs: Uint32Array;
  readonly #message: Buffer;
  readonly #messageAddress: number;
  readonly #capacity: number;
  count = 0;

  /** @param capacity ranges, at most IOV_MAX (1024) */
  constructor(capacity: number) {
    this.#capacity = capacity;
    const iovecs = Buffer.allocUnsafeSlow(16 * capacity).fill(0);
    this.#iovecs = new Uint32Array(iovecs.buffer, iovecs.byteOffset, 4 * capacity);
    this.#message = Buffer.allocUnsafeSlow(56).fill(0);
    this.#message.writeBigUInt64LE(BigInt(addressOf(iovecs)), 16);
    this.#messageAddress = addressOf(this.#message);
  }

  add(buffer: IoBuffer, at: number, length: number): void {
    if (at < 0 || length < 0 || at + length > buffer.length || this.count >= this.#capacity) {
      throw new RangeError(`${length} bytes at ${at} of ${buffer.length}, range ${this.count} of ${this.#capacity}`);
    }
    const address = buffer.address + at;
    const word = 4 * this.count++;
    this.#iovecs[word] = address >>> 0;
    this.#iovecs[word + 1] = (address / 4294967296) | 0;
    this.#iovecs[word + 2] = length;
  }

  /** Sends and forgets the ranges. @returns bytes taken (0: the socket is full), or a negative errno */
  send(fd: number): number {
    this.#message.writeUInt32LE(this.count, 24);
    this.count = 0;
    const sent = sendMessage(fd, this.#messageAddress);
    if (sent >= 0) return sent;
    const code = errno();
    return code === EAGAIN ? 0 : -code;
  }
}
