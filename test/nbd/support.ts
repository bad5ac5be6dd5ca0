import { execFile } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TestContext } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import type { ExportDirectory } from "../../src/export/block-device.ts";
import type { NbdLimits } from "../../src/export/nbd/limits.ts";
import { type Listening, NbdServer } from "../../src/export/nbd/nbd-server.ts";
import type { TlsSettings } from "../../src/export/nbd/tls.ts";
import { MemoryDevice } from "../support/memory-device.ts";

export const MiB = 1024 * 1024;

/** A directory that is removed when the test ends. */
export function tempDir(t: TestContext): string {
  const dir = mkdtempSync(join(tmpdir(), "ullage-nbd-"));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

export interface ServeOptions {
  device?: MemoryDevice;
  exports?: ExportDirectory;
  tls?: TlsSettings;
  limits?: Partial<NbdLimits>;
  /** Default: a unix socket in a directory of the test's own. */
  address?: string;
}

export interface Served {
  server: NbdServer;
  device: MemoryDevice;
  listening: Listening;
  /** Of the export `disk`. */
  uri: string;
  /** Of the unix socket. */
  path: string;
  log: string[];
}

/** A server with one writable export `disk` (also the default one), stopped when the test ends. */
export async function serve(t: TestContext, options: ServeOptions = {}): Promise<Served> {
  const device = options.device ?? new MemoryDevice({ size: 16 * MiB });
  const log: string[] = [];
  const server = new NbdServer({
    exports: options.exports ?? oneExport(device),
    log: (level, message) => log.push(`${level}: ${message}`),
    ...(options.tls === undefined ? {} : { tls: options.tls }),
    ...(options.limits === undefined ? {} : { limits: options.limits }),
  });
  const path = join(tempDir(t), "nbd.sock");
  const listening = await server.listen(options.address ?? `unix:${path}`);
  t.after(() => server.stop(100));
  return { server, device, listening, uri: listening.uri("disk"), path, log };
}

/** The directory with one export, `disk`. */
export function oneExport(device: MemoryDevice, readOnly = false): ExportDirectory {
  return {
    list: () => [{ name: "disk", description: "a disk of memory" }],
    lookup: async (name) =>
      name === "" || name === "disk"
        ? { kind: "device", name: "disk", device, readOnly }
        : { kind: "none", reason: `no export "${name}"` },
  };
}

export interface Ran {
  code: number;
  stdout: string;
  stderr: string;
}

/** Runs a program of PATH to its end; a time limit kills it, which the exit code shows. */
export function run(command: string, args: readonly string[], timeoutMs = 60_000): Promise<Ran> {
  return new Promise((resolve) => {
    execFile(
      command,
      args,
      { timeout: timeoutMs, killSignal: "SIGKILL", maxBuffer: 64 * MiB },
      (error, stdout, stderr) => {
        const code = error === null ? 0 : typeof error.code === "number" ? error.code : -1;
        resolve({ code, stdout, stderr });
      },
    );
  });
}

/** Runs a program that must succeed. @returns its standard output */
export async function succeed(command: string, args: readonly string[], timeoutMs?: number): Promise<string> {
  const { code, stdout, stderr } = await run(command, args, timeoutMs);
  if (code !== 0) throw new Error(`${command} ${args.join(" ")}: exit ${code}\n${stdout}${stderr}`);
  return stdout;
}

/** Runs Python statements in libnbd's shell, where `h` is a new handle. @returns what they printed */
export function nbdsh(script: string): Promise<string> {
  return succeed("nbdsh", ["-c", script]);
}

/** Waits until something becomes true; the time limit is only there to fail. */
export async function until(condition: () => boolean, what: string): Promise<void> {
  for (let i = 0; i < 4_000; i++) {
    if (condition()) return;
    await sleep(5);
  }
  throw new Error(`waited in vain until ${what}`);
}
