import { readdirSync, readFileSync, readlinkSync } from "node:fs";

/** A process that can be told from a later one with the same number. */
export interface ProcessIdentity {
  pid: number;
  /** clock ticks since boot (proc_pid_stat(5), field 22) */
  startTime: number;
}

/** @returns undefined when there is no such process, or only its remains (a zombie) */
export function identify(pid: number): ProcessIdentity | undefined {
  let stat: string;
  try {
    stat = readFileSync(`/proc/${pid}/stat`, "latin1");
  } catch {
    return undefined;
  }
  // The second field is the program's name in parentheses, which may hold anything.
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  if (fields[0] === "Z" || fields[0] === "X") return undefined;
  return { pid, startTime: Number(fields[19]) };
}

export function isAlive(identity: ProcessIdentity): boolean {
  return identify(identity.pid)?.startTime === identity.startTime;
}

/**
 * Processes that use one of the paths or something below it: as an open file, a mapping, a working or a root directory.
 * @returns `fio (pid 4711)`, as far as this user may look
 */
export function usersOf(paths: readonly string[]): string[] {
  const within = (path: string): boolean => paths.some((root) => path === root || path.startsWith(`${root}/`));
  const users: string[] = [];
  for (const entry of readdirSync("/proc")) {
    if (!/^\d+$/.test(entry) || Number(entry) === process.pid || !usedBy(entry).some(within)) continue;
    users.push(`${readText(`/proc/${entry}/comm`).trim() || "?"} (pid ${entry})`);
  }
  return users;
}

function usedBy(pid: string): string[] {
  const links = ["cwd", "root", "exe"].map((name) => `/proc/${pid}/${name}`);
  try {
    links.push(...readdirSync(`/proc/${pid}/fd`).map((fd) => `/proc/${pid}/fd/${fd}`));
  } catch {
    // gone, or another user's
  }
  const mapped = readText(`/proc/${pid}/maps`).matchAll(/ (\/.*)$/gm);
  return [...links.map(readLink), ...[...mapped].map(([, path]) => path)];
}

function readLink(path: string): string {
  try {
    return readlinkSync(path);
  } catch {
    return "";
  }
}

function readText(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}
