import type { Command } from "commander";
import type { VolumeView } from "../../../daemon/views.ts";
import { clientCommand, findDaemon, volumePath, type ClientOptions } from "../../client-command.ts";
import { print, printJson } from "../../output.ts";

interface Options extends ClientOptions {
  acceptLoss?: boolean;
}

export function addReopenCommand(parent: Command): void {
  clientCommand(
    parent,
    "reopen <name>",
    "let writers in again after a failed sync, or after a power cut that remote writers outlived",
    "ullage volume reopen web1 --accept-loss",
  )
    .option("--accept-loss", "go on from the last flush; what was written and not flushed since then is lost")
    .action(async (name: string, options: Options) => {
      const volume = await (
        await findDaemon(options)
      ).call<VolumeView>(volumePath(name, "reopen"), {
        method: "POST",
        body: options.acceptLoss === true ? { acceptLoss: true } : {},
      });
      if (options.json === true) printJson(volume);
      else print(`${name} is ${volume.state}`);
    });
}
