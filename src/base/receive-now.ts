import type { IoBuffer } from "./io-buffer.ts";
import { receive } from "./posix.ts";

/**
 * Receives from a socket on the calling thread until `length` bytes have arrived, or for `patienceMs` none came, or
 * `longestMs` have passed. For payloads whose sender is in the middle of sending them: it wakes up and fills the socket
 * again within microseconds, while a turn through the event loop costs both sides a sleep.
 *
 * The end of the stream and errors are left for the event loop to find: they end this like a pause does.
 * @returns bytes received
 */
export function receiveNow(
  fd: number,
  buffer: IoBuffer,
  at: number,
  length: number,
  patienceMs: number,
  longestMs: number,
): number {
  if (!(at >= 0 && length >= 0 && at + length <= buffer.length)) {
    throw new RangeError(`range ${at}+${length} is outside a buffer of ${buffer.length} bytes`);
  }
  const start = performance.now();
  let lastMs = start;
  let done = 0;
  while (done < length) {
    const got = receive(fd, buffer.address + at + done, length - done);
    if (got === 0) break;
    const now = performance.now();
    if (got > 0) {
      done += got;
      lastMs = now;
    } else if (now - lastMs > patienceMs) {
      break;
    }
    if (now - start > longestMs) break;
  }
  return done;
}
