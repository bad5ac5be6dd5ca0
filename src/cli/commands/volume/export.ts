import { Option, type Command } from "commander";
import { UllageError } from "../../../base/errors.ts";
import { formatSize } from "../../../base/units.ts";
import { clientCommand, findDaemon, volumePath, type ClientOptions } from "../../client-command.ts";
import { print, printJson } from "../../output.ts";
import { snapshotName } from "../../parse.ts";

interface Options extends ClientOptions {
  format: "raw" | "qcow2";
  force?: boolean;
}

export function addExportCommand(parent: Command): void {
  clientCommand(
    parent,
    "export <vol[@snap]> <file>",
    "copy a volume as it is now, or a snapshot, to a file on this machine, or to standard output (-)",
    "ullage volume export web1@backup web1.qcow2 --format qcow2",
  )
    .addOption(new Option("--format <format>", "of the file").choices(["raw", "qcow2"]).default("raw"))
    .option("--force", "replace the file if it is there")
    .action(async (name: string, file: string, options: Options) => {
      if (file === "-") demandPipe(options);
      const path = contentPath(name);
      const daemon = await findDaemon(options);
      const { receiveContent } = await import("../../content-transfer.ts");
      const to = file === "-" ? undefined : { path: file, force: options.force === true };
      const { size, dataBytes } = await receiveContent(daemon, `${path}?format=${options.format}`, to, {
        quiet: options.json === true,
      });
      if (file === "-") return;
      if (options.json === true) printJson({ name, file, format: options.format, size, dataBytes });
      else print(`${name} is in ${file}: ${formatSize(size)}, of which ${formatSize(dataBytes)} are not zeros`);
    });
}

/** @throws UllageError `usage` */
function contentPath(name: string): string {
  if (!name.includes("@")) return volumePath(name, "content");
  const { volume, snapshot } = snapshotName(name);
  return volumePath(volume, "snapshots", encodeURIComponent(snapshot), "content");
}

/** @throws UllageError `usage` */
function demandPipe(options: Options): void {
  if (options.json === true)
    throw new UllageError("usage", "standard output is the disk's: there is no room for --json");
  if (!process.stdout.isTTY) return;
  throw new UllageError("usage", "the disk's bytes would go to the terminal", {
    hint: "give a file, or put a pipe behind the command",
  });
}
