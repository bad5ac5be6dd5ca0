import { execFile, spawn } from "node:child_process";
import { mkdir, readdir, readFile, symlink } from "node:fs/promises";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import type { TestContext } from "node:test";
import { temporaryDirectory } from "../daemon/support.ts";

export const root = join(import.meta.dirname, "../..");
export const execute = promisify(execFile);
export const timeout = 120_000;

/** A project that has the package installed. */
export interface Project {
  directory: string;
  /** The `ullage` command, as npm links it. */
  command: string;
}

/**
 * Packs the checkout and installs the tarball into a new project, the way npm lays it out, without a registry: every
 * dependency that package.json declares is linked to the checkout's. A dependency that is not declared is not found.
 */
export async function installPackage(t: TestContext): Promise<Project> {
  const directory = await temporaryDirectory(t);
  const modules = join(directory, "node_modules");
  const installed = join(modules, "ullage");
  await mkdir(installed, { recursive: true });
  await execute("npm", ["pack", "--pack-destination", directory], { cwd: root, timeout });
  const tarball = (await readdir(directory)).find((name) => name.endsWith(".tgz"))!;
  await execute("tar", ["-xzf", join(directory, tarball), "-C", installed, "--strip-components=1"], { timeout });
  const { dependencies, optionalDependencies, bin } = JSON.parse(
    await readFile(join(installed, "package.json"), "utf8"),
  ) as { dependencies: object; optionalDependencies: object; bin: { ullage: string } };
  const present = new Set(await readdir(join(root, "node_modules")));
  const optional = Object.keys(optionalDependencies).filter((name) => present.has(name)); // the other architecture's is not
  await link(modules, [...Object.keys(dependencies), ...optional]);
  const command = join(modules, ".bin", "ullage");
  await mkdir(dirname(command));
  await symlink(join("..", "ullage", bin.ullage), command);
  return { directory, command };
}

/** Puts packages of the checkout into another folder of modules. */
export async function link(modules: string, names: readonly string[]): Promise<void> {
  for (const name of names) {
    await mkdir(dirname(join(modules, name)), { recursive: true });
    await symlink(join(root, "node_modules", name), join(modules, name));
  }
}

/** A program that goes on running; it is told to stop at the end, and must then leave with 0. */
export interface Running {
  /** What it prints first, until `mark` is in it. */
  firstWords(mark: string): Promise<string>;
  stop(): Promise<void>;
}

export function start(command: string, args: readonly string[], options: { cwd: string }): Running {
  const child = spawn(command, args, { ...options, stdio: ["ignore", "pipe", "pipe"] });
  let text = "";
  let errors = "";
  child.stderr.on("data", (chunk: Buffer) => (errors += chunk.toString()));
  const ended = new Promise<number | null>((resolve) => child.on("close", resolve));
  return {
    firstWords: (mark) =>
      new Promise((resolve, reject) => {
        child.stdout.on("data", (chunk: Buffer) => {
          text += chunk.toString();
          if (text.includes(mark)) resolve(text);
        });
        void ended.then((code) => reject(new Error(`${command} ended with ${code}: ${text}${errors}`)));
      }),
    async stop() {
      child.kill("SIGTERM");
      const timer = setTimeout(() => child.kill("SIGKILL"), timeout);
      const code = await ended;
      clearTimeout(timer);
      if (code !== 0) throw new Error(`${command} ended with ${code}: ${errors}`);
    },
  };
}
