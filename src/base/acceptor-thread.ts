import { receiveMessageOnPort, workerData } from "node:worker_threads";
import { type AcceptorCommand, type AcceptorData, type AcceptorMessage, AcceptorWord } from "./acceptor.ts";
import { accept, drainEvent, EAGAIN, EINTR, errno, errnoName, poll } from "./posix.ts";

/** Accepted descriptors that the main thread has not taken over; it is busy, so more would only pile up. */
const MAX_PENDING = 64;
/** The pause after accept(2) failed for lack of something: the listener stays readable, and poll would spin. */
const STARVED_PAUSE_MS = 100;
/** How often that is reported. */
const STARVED_REPORT_MS = 60_000;
/** The pause while the main thread is behind. */
const BEHIND_PAUSE_MS = 5;

const POLLIN = 1;
const ECONNABORTED = 103;
const EPERM = 1;
const EPROTO = 71;

const { wake, shared, port } = workerData as AcceptorData;
const words = new Int32Array(shared);
let listeners: number[] = [];
let pollfds = pollTable();
let starvedReport = -Infinity;

/** `struct pollfd` for the eventfd and every listener. */
function pollTable(): Buffer {
  const table = Buffer.allocUnsafeSlow(8 * (1 + listeners.length)).fill(0);
  [wake, ...listeners].forEach((fd, index) => {
    table.writeInt32LE(fd, 8 * index);
    table.writeInt16LE(POLLIN, 8 * index + 4);
  });
  return table;
}

function tell(message: AcceptorMessage): void {
  port.postMessage(message);
}

function takeCommands(): void {
  drainEvent(wake);
  for (;;) {
    const received = receiveMessageOnPort(port);
    if (received === undefined) return;
    const command = received.message as AcceptorCommand;
    listeners = command.listeners;
    pollfds = pollTable();
    tell({ kind: "applied" });
  }
}

/** Accepts what a listener has. @returns how long to wait before the next try, or 0 */
function acceptAll(listener: number): number {
  for (;;) {
    if (Atomics.load(words, AcceptorWord.pending) >= MAX_PENDING) return BEHIND_PAUSE_MS;
    const fd = accept(listener);
    if (fd >= 0) {
      Atomics.add(words, AcceptorWord.pending, 1);
      tell({ kind: "accepted", listener, fd });
      continue;
    }
    const code = errno();
    if (code === EAGAIN) return 0;
    // The client gave up while it waited, or a firewall refused it: not our trouble.
    if (code === EINTR || code === ECONNABORTED || code === EPERM || code === EPROTO) continue;
    if (performance.now() - starvedReport > STARVED_REPORT_MS) {
      starvedReport = performance.now();
      tell({ kind: "starved", errno: errnoName(code) });
    }
    return STARVED_PAUSE_MS;
  }
}

let pauseMs = 0;
while (Atomics.load(words, AcceptorWord.stop) === 0) {
  // During a pause only the eventfd is waited for.
  if (pauseMs > 0) poll(pollfds.subarray(0, 8), pauseMs);
  else poll(pollfds, -1);
  pauseMs = 0;
  takeCommands();
  for (const listener of listeners) pauseMs = Math.max(pauseMs, acceptAll(listener));
}
port.close();
