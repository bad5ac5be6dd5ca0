import type { Command } from "commander";
import { formatSize } from "../../../base/units.ts";
import type { VolumeView } from "../../../daemon/views.ts";
import { clientCommand, askDaemon, volumePath, type ClientOptions } from "../../client-command.ts";
import { print, printJson } from "../../output.ts";
import { sizeOption } from "../../parse.ts";

interface Options extends ClientOptions {
  force?: boolean;
}

export function addResizeCommand(parent: Command): void {
  clientCommand(
    parent,
    "resize <name>",
    "grow a volume while it is in use; new connections see the new size",
    "ullage volume resize web1 40G",
  )
    .argument("<size>", "512, 64k, 10M, 1.5G, 2T", sizeOption)
    .option("--force", "shrink it, if nothing was written behind the new end; closes its connections")
    .action(async (name: string, size: number, options: Options) => {
      const body = { size, ...(options.force === true ? { force: true } : {}) };
      const volume = await askDaemon<VolumeView>(options, volumePath(name), { method: "PATCH", body });
      if (options.json === true) printJson(volume);
      else print(`${name} has ${formatSize(volume.size)}`);
    });
}
