/** What the figures were measured on, for the head of the results. */
import { readFile, statfs } from "node:fs/promises";
import { cpus, release, totalmem } from "node:os";
import { run } from "./process.ts";

const fileSystems: Record<number, string> = {
  0xef53: "ext4",
  0x58465342: "xfs",
  0x9123683e: "btrfs",
  0x01021994: "tmpfs",
  0x794c7630: "overlayfs",
};

/** Lines of Markdown: machine, kernel, file system, versions. */
export async function describeMachine(folder: string): Promise<string[]> {
  const { type } = await statfs(folder);
  const writeMemory = (await readFile("/proc/sys/net/core/wmem_max", "utf8")).trim();
  return [
    `- machine: ${cpus().length} x ${cpus()[0]?.model ?? "unknown"}, ${Math.round(totalmem() / 2 ** 30)} GiB of memory`,
    `- kernel ${release()}, ${fileSystems[type] ?? `file system 0x${type.toString(16)}`}, net.core.wmem_max ${writeMemory}`,
    `- load average before the first table: ${(await readFile("/proc/loadavg", "utf8")).split(" ").slice(0, 3).join(" ")}`,
    `- Node ${process.versions.node}; ${(await Promise.all(programs.map(versionOf))).join("; ")}`,
  ];
}

const programs = ["nbdkit", "qemu-nbd", "fio", "curl", "nbdfuse"];

async function versionOf(program: string): Promise<string> {
  const text = await run(program, ["--version"]).catch(() => `${program} is missing`);
  return text.split("\n")[0].replace(/ \(.*/, "").trim();
}
