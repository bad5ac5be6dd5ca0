import { receiveMessageOnPort, workerData } from "node:worker_threads";
import type { PollThreadData } from "./poll-thread.ts";
import { drainEvent, poll } from "../posix.ts";

export const POLLIN = 1;
export const POLLOUT = 4;
export const POLLERR = 8;
export const POLLHUP = 16;

/** A descriptor that is waited for, and for what: `POLLIN | POLLOUT`. */
export interface Polled {
  readonly fd: number;
  readonly events: number;
}

/** What a thread does between two waits. */
export interface PollWork<Command> {
  command(command: Command): void;
  /** What to wait for now; asked before every wait. */
  polled(): readonly Polled[];
  /** How long to wait at most, ms; -1: until something happens. */
  timeoutMs(): number;
  /** A descriptor is ready, or has failed. @param events what poll(2) said, `POLLHUP` and `POLLERR` included */
  ready(index: number, events: number): void;
  /** The thread ends. */
  end(): void;
}

/** What the thread was started with. */
export function pollSetup(): unknown {
  return (workerData as PollThreadData<unknown>).setup;
}

export function tellMain(message: unknown): void {
  (workerData as PollThreadData<unknown>).port.postMessage(message, []);
}

/** Runs until the main thread ends it. The layout is that of an array of `struct pollfd`. */
export function runPollLoop<Command>(work: PollWork<Command>): void {
  const { wake, stop, port } = workerData as PollThreadData<unknown>;
  const stopped = new Int32Array(stop);
  while (Atomics.load(stopped, 0) === 0) {
    const polled = work.polled();
    const table = Buffer.allocUnsafeSlow(8 * (1 + polled.length)).fill(0);
    table.writeInt32LE(wake, 0);
    table.writeInt16LE(POLLIN, 4);
    polled.forEach(({ fd, events }, index) => {
      table.writeInt32LE(fd, 8 * (index + 1));
      table.writeInt16LE(events, 8 * (index + 1) + 4);
    });
    poll(table, work.timeoutMs());
    if (table.readInt16LE(6) !== 0) drainEvent(wake);
    for (let index = 0; index < polled.length; index++) {
      const events = table.readInt16LE(8 * (index + 1) + 6);
      if (events !== 0) work.ready(index, events);
    }
    for (;;) {
      const received = receiveMessageOnPort(port);
      if (received === undefined) break;
      work.command(received.message as Command);
    }
  }
  work.end();
  port.close();
}
