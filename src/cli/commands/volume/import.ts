import { Option, type Command } from "commander";
import { formatSize } from "../../../base/units.ts";
import { clientCommand, findDaemon, volumePath, type ClientOptions } from "../../client-command.ts";
import { print, printJson } from "../../output.ts";

interface Options extends ClientOptions {
  format: string;
}

export function addImportCommand(parent: Command): void {
  clientCommand(
    parent,
    "import <name> <file>",
    "make a volume from a raw disk on this machine, or from standard input (-)",
    "xz -dc disk.raw.xz | ullage volume import web1 -",
  )
    .addOption(
      new Option("--format <format>", "auto: images of other formats are refused; raw: any bytes are a disk")
        .choices(["auto", "raw"])
        .default("auto"),
    )
    .addHelpText(
      "after",
      `
All of it is sent to the daemon; zeros are not. For an image on the daemon's own machine, or on a web server, this is
quicker, and shares the bytes between volumes:
  $ ullage volume create web1 --from /images/debian.raw`,
    )
    .action(async (name: string, file: string, options: Options) => {
      const daemon = await findDaemon(options);
      const { sendContent } = await import("../../content-transfer.ts");
      const path = `${volumePath(name, "content")}?format=${options.format}`;
      const volume = await sendContent(daemon, path, name, file === "-" ? undefined : file, {
        quiet: options.json === true,
      });
      if (options.json === true) printJson(volume);
      else print(`${volume.name} is ready: ${formatSize(volume.size)}, NBD export '${volume.name}'`);
    });
}
