import { execFile } from "node:child_process";
import { accessSync, constants } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { UllageError } from "../base/errors.ts";

/** System programs are found for users whose PATH lacks the sbin folders too. */
const searchPath = [process.env["PATH"] ?? "", "/usr/sbin", "/sbin", "/usr/bin", "/bin"].join(":");

const maxOutputBytes = 1024 * 1024;

/** The environment of system programs: messages in English, since some are looked at. */
export const commandEnvironment = { ...process.env, PATH: searchPath, LC_ALL: "C" };

export function commandExists(name: string): boolean {
  return searchPath.split(":").some((folder) => {
    try {
      accessSync(join(folder, name), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

/** A program of ours in the folder of the module with that URL, which has its extension: .ts in a checkout, .js in the package. */
export function programBeside(name: string, moduleUrl: string): string {
  const extension = moduleUrl.slice(moduleUrl.lastIndexOf("."));
  return fileURLToPath(new URL(`./${name}${extension}`, moduleUrl));
}

export interface CommandResult {
  code: number;
  stdout: string;
  stderr: string;
}

/** Runs a program to its end, however it ends. There is no time limit: what waits for the disk has that of the disk. */
export function tryCommand(command: string, ...args: string[]): Promise<CommandResult> {
  return new Promise((resolve, reject) => {
    const options = { env: commandEnvironment, maxBuffer: maxOutputBytes };
    const child = execFile(command, args, options, (error, stdout, stderr) => {
      if (error !== null && child.exitCode === null) {
        reject(new UllageError("command-failed", `${command} could not be run`, { cause: error }));
      } else {
        resolve({ code: child.exitCode ?? 0, stdout: stdout.trim(), stderr: stderr.trim() });
      }
    });
  });
}

/** @returns what it printed @throws UllageError `command-failed` with what it complained about */
export async function runCommand(command: string, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await tryCommand(command, ...args);
  if (code === 0) return stdout;
  const said = stderr || stdout || `it ended with ${code}`;
  throw new UllageError("command-failed", `${command} ${args.join(" ")} failed: ${said.replace(/\s*\n\s*/g, "; ")}`);
}
