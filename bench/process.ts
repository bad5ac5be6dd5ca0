/** Child processes of the benchmark: servers that listen on a unix socket, and programs that run to their end. */
import { type ChildProcess, type SpawnOptions, spawn } from "node:child_process";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { connect } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";

export interface RunningServer {
  pid: number;
  /** SIGTERM, then waits for the end; SIGKILL after `stopTimeoutMs`. */
  stop(): Promise<void>;
  /** kill -9; returns once the process is gone. */
  kill(): Promise<void>;
}

const startTimeoutMs = 120_000;
const stopTimeoutMs = 120_000;
/** /proc/PID/stat counts in these (USER_HZ). */
const tickMicros = 10_000;

const living = new Set<ChildProcess>();

/** Ends what is still running, for when the benchmark itself is interrupted. */
export function killChildren(): void {
  for (const child of living) child.kill("SIGKILL");
}

function start(command: string, args: readonly string[], options: SpawnOptions): ChildProcess {
  const child = spawn(command, args, options);
  living.add(child);
  child.on("close", () => living.delete(child));
  return child;
}

/** Starts a server and returns once `socket` accepts connections. @throws Error with what it said when it ends before */
export async function startServer(command: string, args: readonly string[], socket: string): Promise<RunningServer> {
  const child = start(command, args, { stdio: ["ignore", "ignore", "pipe"] });
  const said = tailOf(child);
  const ended = once(child, "close").catch(() => undefined);
  const running = { yes: true };
  void ended.then(() => (running.yes = false));
  const deadline = performance.now() + startTimeoutMs;
  while (!(await accepts(socket))) {
    if (!running.yes) throw new Error(`${command} ended before it listened on ${socket}:\n${said()}`);
    if (performance.now() > deadline) {
      child.kill("SIGKILL");
      throw new Error(`${command} did not listen on ${socket} within ${startTimeoutMs} ms:\n${said()}`);
    }
    await sleep(5);
  }
  return {
    pid: child.pid!,
    stop: async () => {
      child.kill("SIGTERM");
      const killer = setTimeout(() => child.kill("SIGKILL"), stopTimeoutMs);
      await ended;
      clearTimeout(killer);
    },
    kill: async () => {
      child.kill("SIGKILL");
      await ended;
    },
  };
}

/** Runs a program to its end; resolves to its standard output. @throws Error with its complaints when it fails */
export async function run(command: string, args: readonly string[], timeoutMs = 600_000): Promise<string> {
  const child = start(command, args, { stdio: ["ignore", "pipe", "pipe"], timeout: timeoutMs, killSignal: "SIGKILL" });
  const said = tailOf(child);
  const output: Buffer[] = [];
  child.stdout?.on("data", (chunk: Buffer) => output.push(chunk));
  const [code, signal] = (await once(child, "close")) as [number | null, string | null];
  if (code !== 0) throw new Error(`${command} ${args.join(" ")}: ${signal ?? `exit ${code}`}\n${said()}`);
  return Buffer.concat(output).toString();
}

/** CPU time that the process with all its threads has used, µs, to 10 ms. */
export async function cpuMicros(pid: number): Promise<number> {
  const stat = await readFile(`/proc/${pid}/stat`, "utf8");
  // Fields 14 and 15, counted behind the command's closing bracket (proc(5)).
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) * tickMicros;
}

/** CPU time that the whole machine has used, and that other guests of its host took from it (steal), µs. */
export async function machineCpuMicros(): Promise<number> {
  const [line] = (await readFile("/proc/stat", "utf8")).split("\n", 1);
  // cpu user nice system idle iowait irq softirq steal (proc(5)); guest time is part of user.
  const [user, nice, system, , , irq, softirq, steal] = line.trim().split(/\s+/).slice(1).map(Number);
  return (user + nice + system + irq + softirq + steal) * tickMicros;
}

/** Resident memory of the process, bytes. */
export async function residentBytes(pid: number): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, "utf8");
  return Number(/^VmRSS:\s+(\d+) kB/m.exec(status)?.[1]) * 1024;
}

function accepts(socket: string): Promise<boolean> {
  return new Promise((resolve) => {
    const probe = connect(socket);
    probe.on("connect", () => {
      probe.destroy();
      resolve(true);
    });
    probe.on("error", () => resolve(false));
  });
}

const tailBytes = 4000;

function tailOf(child: ChildProcess): () => string {
  let tail = "";
  child.stderr?.on("data", (chunk: Buffer) => (tail = (tail + chunk.toString()).slice(-tailBytes)));
  child.on("error", (error) => (tail += error.message));
  return () => tail;
}
