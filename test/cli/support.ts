import { spawn, type ChildProcess } from "node:child_process";
import { join } from "node:path";
import type { TestContext } from "node:test";
import type { HealthView } from "../../src/daemon/views.ts";
import { atEnd, temporaryDirectory } from "../daemon/support.ts";

const ullage = join(import.meta.dirname, "../../bin/ullage");
/** Far more than anything here takes on a loaded machine. */
const patienceMs = 60_000;

export interface Result {
  code: number | null;
  stdout: string;
  stderr: string;
}

/** Runs a command to its end. */
export async function run(args: string[], options: { cwd?: string; env?: NodeJS.ProcessEnv } = {}): Promise<Result> {
  const child = start(args, options);
  const timer = setTimeout(() => child.kill("SIGKILL"), patienceMs);
  const result = await ended(child);
  clearTimeout(timer);
  return result;
}

/** The default addresses include a port, which only one of the tests that run at the same time could have. */
function withOwnApi(args: string[]): string[] {
  const data = args[args.indexOf("--data") + 1];
  if (args[0] !== "serve" || !args.includes("--data") || args.includes("--api")) return args;
  return [...args, "--api", `unix:${data}/api.sock`];
}

function start(args: string[], options: { cwd?: string; env?: NodeJS.ProcessEnv }): ChildProcess {
  return spawn("sh", [ullage, ...withOwnApi(args)], {
    cwd: options.cwd,
    env: { ...process.env, ULLAGE_API: undefined, ...options.env },
    stdio: ["ignore", "pipe", "pipe"],
  });
}

async function ended(child: ChildProcess): Promise<Result> {
  let stdout = "";
  let stderr = "";
  child.stdout!.on("data", (chunk: Buffer) => (stdout += chunk.toString()));
  child.stderr!.on("data", (chunk: Buffer) => (stderr += chunk.toString()));
  const code = await new Promise<number | null>((resolve) => child.on("close", resolve));
  return { code, stdout, stderr };
}

/** A `serve` or `run` that is running. */
export interface Running<T> {
  /** What it printed with --json. */
  announced: T;
  child: ChildProcess;
  /** Asks it to stop and waits for its end. */
  stop(signal?: NodeJS.Signals): Promise<Result>;
  /** Resolves at its end. */
  result: Promise<Result>;
}

/** Starts `serve` or `run` with --json and resolves when it has said where it listens. It is stopped when the test ends. */
export async function launch<T>(
  t: TestContext,
  args: string[],
  options: { cwd?: string; env?: NodeJS.ProcessEnv } = {},
): Promise<Running<T>> {
  const child = start([...args, "--json"], options);
  const result = ended(child);
  atEnd(t, async () => {
    child.kill("SIGTERM"); // it removes what it has in /tmp
    const timer = setTimeout(() => child.kill("SIGKILL"), patienceMs);
    await result;
    clearTimeout(timer);
  });
  const announced = await new Promise<T>((resolve, reject) => {
    let text = "";
    child.stdout!.on("data", (chunk: Buffer) => {
      text += chunk.toString();
      if (text.endsWith("\n}\n")) resolve(JSON.parse(text) as T);
    });
    void result.then(({ code, stderr }) => reject(new Error(`${args[0]} ended with ${code}: ${stderr}`)));
  });
  return {
    announced,
    child,
    result,
    stop(signal = "SIGTERM") {
      child.kill(signal);
      return result;
    },
  };
}

/** A daemon on a data directory of its own, and a way to run client commands against it. */
export interface Daemon extends Running<HealthView> {
  dataDir: string;
  /** NBD URI of an export on its unix socket. */
  uri(name: string): string;
  /** Runs a client command; `cli(["volume", "ls"])`. */
  cli(args: string[]): Promise<Result>;
  /** The same with --json, which must succeed. */
  json<T>(args: string[]): Promise<T>;
}

export async function launchDaemon(t: TestContext, dataDir?: string, more: string[] = []): Promise<Daemon> {
  const directory = dataDir ?? join(await temporaryDirectory(t), "data");
  const socket = join(directory, "nbd.sock");
  const running = await launch<HealthView>(t, ["serve", "--data", directory, "--nbd", `unix:${socket}`, ...more]);
  const cli = (args: string[]): Promise<Result> => run(args, { env: { ULLAGE_API: `unix:${directory}/api.sock` } });
  return {
    ...running,
    dataDir: directory,
    uri: (name) => `nbd+unix:///${name}?socket=${socket}`,
    cli,
    async json<T>(args: string[]): Promise<T> {
      const { code, stdout, stderr } = await cli([...args, "--json"]);
      if (code !== 0) throw new Error(`${args.join(" ")} ended with ${code}: ${stderr}`);
      return JSON.parse(stdout) as T;
    },
  };
}
