import type { AcceptorCommand, AcceptorMessage, AcceptorSetup } from "./acceptor.ts";
import { type Polled, POLLIN, pollSetup, runPollLoop, tellMain } from "./poll-loop.ts";
import { accept, EAGAIN, EINTR, errno, errnoName } from "../posix.ts";

/** Accepted descriptors that the main thread has not taken over; it is busy, so more would only pile up. */
const MAX_PENDING = 64;
/** The pause after accept(2) failed for lack of something: the listener stays readable, and poll would spin. */
const STARVED_PAUSE_MS = 100;
/** How often that is reported. */
const STARVED_REPORT_MS = 60_000;
/** The pause while the main thread is behind. */
const BEHIND_PAUSE_MS = 5;

const ECONNABORTED = 103;
const EPERM = 1;
const EPROTO = 71;

const pending = new Int32Array((pollSetup() as AcceptorSetup).pending);
let listeners: Polled[] = [];
let starvedReport = -Infinity;
/** During a pause no listener is waited for. */
let pauseMs = 0;

function tell(message: AcceptorMessage): void {
  tellMain(message);
}

/** Accepts what a listener has. @returns how long to wait before the next try, or 0 */
function acceptAll(listener: number): number {
  for (;;) {
    if (Atomics.load(pending, 0) >= MAX_PENDING) return BEHIND_PAUSE_MS;
    const fd = accept(listener);
    if (fd >= 0) {
      Atomics.add(pending, 0, 1);
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

runPollLoop<AcceptorCommand>({
  command({ listeners: fds }) {
    listeners = fds.map((fd) => ({ fd, events: POLLIN }));
    tell({ kind: "applied" });
  },
  polled() {
    return pauseMs > 0 ? [] : listeners;
  },
  timeoutMs() {
    const waitMs = pauseMs > 0 ? pauseMs : -1;
    pauseMs = 0;
    return waitMs;
  },
  ready(index) {
    pauseMs = Math.max(pauseMs, acceptAll(listeners[index].fd));
  },
  end() {
    // The listeners are the main thread's.
  },
});
