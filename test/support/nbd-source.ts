import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import net from "node:net";
import { join } from "node:path";
import type { TestContext } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { temporaryDirectory } from "../daemon/support.ts";

/** Another NBD server, which can be killed and started again at the same place. */
export class NbdSource {
  readonly socket: string;
  readonly #command: string;
  readonly #args: readonly string[];
  readonly #reachable: () => Promise<boolean>;
  #child: ChildProcess | undefined;
  #log = "";

  constructor(socket: string, command: string, args: readonly string[], port?: number) {
    this.socket = socket;
    this.#command = command;
    this.#args = args;
    this.#reachable = port === undefined ? () => Promise.resolve(isListening(socket)) : () => connects(port);
  }

  /** `nbd+unix:///NAME?socket=…` */
  uri(name = "", scheme = "nbd+unix", parameters = ""): string {
    return `${scheme}:///${name}?socket=${this.socket}${parameters}`;
  }

  async start(): Promise<void> {
    const child = spawn(this.#command, this.#args, { stdio: ["ignore", "pipe", "pipe"] });
    this.#child = child;
    for (const stream of [child.stdout, child.stderr])
      stream.on("data", (text: Buffer) => (this.#log += text.toString()));
    for (let tries = 0; !(await this.#reachable()); tries++) {
      if (child.exitCode !== null || tries > 500) throw new Error(`${this.#command} ended: ${this.#log}`);
      await sleep(20);
    }
  }

  /** kill -9, and its end awaited. */
  async kill(signal: NodeJS.Signals = "SIGKILL"): Promise<void> {
    const child = this.#child;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    child.kill(signal);
    await once(child, "exit");
  }
}

/** Told by the kernel (unix(7), `SO_ACCEPTCON`): nbdkit 1.32 aborts at times when somebody connects and leaves at once. */
function isListening(path: string): boolean {
  const lines = readFileSync("/proc/net/unix", "utf8").split("\n");
  return lines.some((line) => line.endsWith(` ${path}`) && line.split(" ")[3] === "00010000");
}

function connects(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = net.connect({ host: "127.0.0.1", port });
    socket.once("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.once("error", () => resolve(false));
  });
}

async function started(t: TestContext, source: NbdSource): Promise<NbdSource> {
  t.after(() => source.kill());
  await source.start();
  return source;
}

/** An nbdkit that serves over a unix socket, with these arguments behind its own. */
export async function startNbdkit(t: TestContext, ...args: string[]): Promise<NbdSource> {
  const socket = join(await temporaryDirectory(t), "source.sock");
  // A killed one leaves its socket: nbdkit begins by removing it only if it is told where to put its pid.
  return started(
    t,
    new NbdSource(socket, "sh", ["-c", `rm -f '${socket}'; exec nbdkit "$@"`, "sh", "-f", "-U", socket, ...args]),
  );
}

/** The same over TCP. @returns its port */
export async function startNbdkitOnTcp(t: TestContext, ...args: string[]): Promise<number> {
  const port = await freePort();
  await started(t, new NbdSource("", "nbdkit", ["-f", "-i", "127.0.0.1", "-p", `${port}`, ...args], port));
  return port;
}

export async function startQemuNbd(t: TestContext, ...args: string[]): Promise<NbdSource> {
  const socket = join(await temporaryDirectory(t), "source.sock");
  const shell = `rm -f '${socket}'; exec qemu-nbd "$@"`;
  return started(t, new NbdSource(socket, "sh", ["-c", shell, "sh", "-t", "-e", "16", "-k", socket, ...args]));
}

/**
 * The reference implementation, which answers with simple replies.
 * @param files by the names of their exports @returns the URI of an export
 */
export async function startNbdServer(
  t: TestContext,
  files: Readonly<Record<string, string>>,
): Promise<(name: string) => string> {
  const directory = await temporaryDirectory(t);
  const [config, pidFile] = ["config", "pid"].map((name) => join(directory, name));
  const exports = Object.entries(files).map(([name, file]) => `[${name}]\nexportname = ${file}\nreadonly = true\n`);
  for (let attempt = 1; ; attempt++) {
    const port = await freePort();
    const general = `[generic]\nlistenaddr = 127.0.0.1\nport = ${port}\n`;
    writeFileSync(config, general + exports.join(""));
    // It goes into the background once it listens: with -d it would serve one client only.
    const child = spawn("nbd-server", ["-C", config, "-p", pidFile], { stdio: "ignore" });
    const [code] = (await once(child, "exit")) as [number | null];
    for (let tries = 0; tries < (code === 0 ? 500 : 0); tries++) {
      if (existsSync(pidFile) && (await connects(port))) {
        const pid = Number(readFileSync(pidFile, "utf8"));
        t.after(() => process.kill(pid, "SIGTERM"));
        return (name) => `nbd://127.0.0.1:${port}/${name}`;
      }
      await sleep(20);
    }
    if (attempt === 3) throw new Error(`nbd-server ended with ${code}`); // somebody may have been faster to take the port
  }
}

export async function freePort(): Promise<number> {
  const server = net.createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as net.AddressInfo;
  server.close();
  await once(server, "close");
  return port;
}
