/*
 * A stop is asked for with SIGTERM, Ctrl-C (SIGINT) or by closing the terminal (SIGHUP). The first one begins a clean
 * stop; a second one ends the process at once, as kill -9 would: acknowledged writes are safe, the next start replays.
 */
/** Ctrl-C reaches a child of npm twice, from the terminal and from npm: so soon it is the same request. */
const sameRequestMs = 1000;

const signals = ["SIGTERM", "SIGINT", "SIGHUP"] as const;

/** @returns a signal that is aborted at the first request to stop */
export function stopSignal(): AbortSignal {
  const controller = new AbortController();
  let firstAt = 0;
  const onSignal = (): void => {
    if (!controller.signal.aborted) {
      firstAt = performance.now();
      controller.abort();
    } else if (performance.now() - firstAt > sameRequestMs) {
      process.kill(process.pid, "SIGKILL"); // exit() would wait for threads in system calls
    }
  };
  for (const signal of signals) process.on(signal, onSignal);
  return controller.signal;
}

export function aborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return Promise.resolve();
  return new Promise((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
}
