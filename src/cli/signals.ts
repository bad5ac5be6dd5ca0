/*
 * A stop is asked for with SIGTERM, Ctrl-C (SIGINT) or by closing the terminal (SIGHUP). The first one begins a clean
 * stop; a second one ends the process at once, as kill -9 would: acknowledged writes are safe, the next start replays.
 */
const signals = ["SIGTERM", "SIGINT", "SIGHUP"] as const;

/** @returns a signal that is aborted at the first request to stop */
export function stopSignal(): AbortSignal {
  const controller = new AbortController();
  const onSignal = (): void => {
    if (controller.signal.aborted) process.kill(process.pid, "SIGKILL"); // exit() would wait for threads in system calls
    controller.abort();
  };
  for (const signal of signals) process.on(signal, onSignal);
  return controller.signal;
}

export function aborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return Promise.resolve();
  return new Promise((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
}
