/*
 * A stop is asked for with SIGTERM, Ctrl-C (SIGINT) or by closing the terminal (SIGHUP). Where there is no terminal, SIGHUP
 * asks a daemon to read again what may have changed. The first request to stop begins a clean stop; a second one ends the process at once, as kill -9 would: acknowledged writes are safe, the next start replays.
 */
/** Ctrl-C reaches a child of npm twice, from the terminal and from npm: so soon it is the same request. */
const sameRequestMs = 1000;

const signals = ["SIGTERM", "SIGINT", "SIGHUP"] as const;

/**
 * @param onReload what SIGHUP means without a terminal; absent: a stop
 * @returns a signal that is aborted at the first request to stop
 */
export function stopSignal(onReload?: () => void): AbortSignal {
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
  const hasTerminal = [process.stdin, process.stdout, process.stderr].some(({ isTTY }) => isTTY);
  for (const signal of signals) {
    process.on(signal, signal === "SIGHUP" && onReload !== undefined && !hasTerminal ? onReload : onSignal);
  }
  return controller.signal;
}

export function aborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return Promise.resolve();
  return new Promise((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
}
