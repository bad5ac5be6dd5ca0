import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { type AddressInfo, createServer } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";

/** A port of the loopback that nobody has just now. */
export async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return port;
}

export interface ServerProcess extends AsyncDisposable {
  stop(signal?: NodeJS.Signals): Promise<void>;
}

/** Starts a server and waits until `isUp`. @throws Error with what it said when it ends before that */
export async function startServer(
  command: string,
  args: readonly string[],
  isUp: () => Promise<boolean>,
  env: Record<string, string> = {},
): Promise<ServerProcess> {
  const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"], env: { ...process.env, ...env } });
  let said = "";
  for (const stream of [child.stdout, child.stderr])
    stream.on("data", (text: Buffer) => (said = (said + text.toString()).slice(-4000)));
  const stop = (signal: NodeJS.Signals = "SIGTERM"): Promise<void> => end(child, signal);
  for (let n = 0; !(await isUp()); n++) {
    if (child.exitCode !== null || n > 600) {
      await stop("SIGKILL");
      throw new Error(`${command} does not come up: ${said}`);
    }
    await sleep(50);
  }
  return { stop, [Symbol.asyncDispose]: () => stop("SIGKILL") };
}

async function end(child: ChildProcess, signal: NodeJS.Signals): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exited = once(child, "exit");
  child.kill(signal);
  const timer = setTimeout(() => child.kill("SIGKILL"), 10_000);
  await exited;
  clearTimeout(timer);
}

/** Whether something answers there with less than 500. */
export function answers(url: string): Promise<boolean> {
  return fetch(url).then(
    (response) => response.status < 500,
    () => false,
  );
}
