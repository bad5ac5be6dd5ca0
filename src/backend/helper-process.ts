import { spawn } from "node:child_process";

const timeoutMs = 10_000;
const maxOutputBytes = 64 * 1024;

/**
 * Runs a credential helper: a program that prints secrets. It has ten seconds and 64 KiB; what it prints is in no message.
 * @returns its stdout @throws Error when it can't be run, fails, takes too long or says too much
 */
export function runHelper(command: string, args: readonly string[], input: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { stdio: ["pipe", "pipe", "ignore"], detached: true });
    const chunks: Buffer[] = [];
    let bytes = 0;
    const end = (error: Error): void => {
      clearTimeout(timer);
      child.stdout.destroy();
      // The whole group: what a script has started must not keep on.
      if (child.pid !== undefined && child.exitCode === null) killGroup(child.pid);
      reject(error);
    };
    const timer = setTimeout(() => end(new Error(`${command} took longer than ${timeoutMs} ms`)), timeoutMs);
    child.on("error", (error) => end(error));
    child.stdin.on("error", () => undefined); // it need not read
    child.stdout.on("data", (chunk: Buffer) => {
      bytes += chunk.length;
      if (bytes > maxOutputBytes) end(new Error(`${command} printed more than ${maxOutputBytes} bytes`));
      else chunks.push(chunk);
    });
    child.on("close", (code, signal) => {
      clearTimeout(timer);
      if (code === 0) resolve(Buffer.concat(chunks).toString("utf8"));
      else reject(new Error(`${command} ended with ${signal ?? code}`));
    });
    child.stdin.end(input);
  });
}

function killGroup(pid: number): void {
  try {
    process.kill(-pid, "SIGKILL");
  } catch {
    // gone already
  }
}
