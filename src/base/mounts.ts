import { readFileSync } from "node:fs";

/** A line of /proc/self/mountinfo (proc_pid_mountinfo(5)). */
export interface Mount {
  id: number;
  /** of the mount that it lies in */
  parent: number;
  /** `7:3`; of what has no block device `0:39` */
  device: string;
  path: string;
  type: string;
  /** `/dev/loop3`, `ullage:web1` */
  source: string;
  options: string[];
}

/** In the order in which they were mounted. */
export function listMounts(): Mount[] {
  return readFileSync("/proc/self/mountinfo", "utf8").split("\n").filter(Boolean).map(parse);
}

/** The mounts that lie in one of these, however deep; not those that one of these only covers. */
export function mountsIn(outer: readonly Mount[]): Mount[] {
  const ids = new Set(outer.map(({ id }) => id));
  return listMounts().filter(({ id, parent }) => {
    if (ids.has(id) || !ids.has(parent)) return false;
    ids.add(id);
    return true;
  });
}

/** `36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue` */
function parse(line: string): Mount {
  const [mount = "", fileSystem = ""] = line.split(" - ");
  const [id, parent, device = "", , path = "", options = ""] = mount.split(" ");
  const [type = "", source = "", superOptions = ""] = fileSystem.split(" ");
  return {
    id: Number(id),
    parent: Number(parent),
    device,
    path: unescape(path),
    type,
    source: unescape(source),
    options: [...options.split(","), ...superOptions.split(",")].map(unescape),
  };
}

/** Space, tab, newline and backslash are written as three octal digits. */
function unescape(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));
}
