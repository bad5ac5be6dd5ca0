import { readFileSync } from "node:fs";

/** A line of /proc/self/mountinfo (proc_pid_mountinfo(5)). */
export interface Mount {
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

/** `36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue` */
function parse(line: string): Mount {
  const [mount = "", fileSystem = ""] = line.split(" - ");
  const [, , device = "", , path = "", options = ""] = mount.split(" ");
  const [type = "", source = "", superOptions = ""] = fileSystem.split(" ");
  return {
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
