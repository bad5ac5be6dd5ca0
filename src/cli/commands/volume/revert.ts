import type { Command } from "commander";
import type { VolumeView } from "../../../daemon/views.ts";
import { clientCommand, askDaemon, volumePath, type ClientOptions } from "../../client-command.ts";
import { print, printJson } from "../../output.ts";
import { snapshotName } from "../../parse.ts";

interface Options extends ClientOptions {
  force?: boolean;
}

export function addRevertCommand(parent: Command): void {
  clientCommand(
    parent,
    "revert <vol@snap>",
    "make a volume what a snapshot of it is; what was written since is lost",
    "ullage volume revert web1@before-upgrade",
  )
    .option("--force", "close read-write connections first")
    .action(async (name: string, options: Options) => {
      const { volume, snapshot } = snapshotName(name);
      const body = { snapshot, ...(options.force === true ? { force: true } : {}) };
      const after = await askDaemon<VolumeView>(options, volumePath(volume, "revert"), { method: "POST", body });
      if (options.json === true) printJson(after);
      else print(`${volume} is what ${name} was`);
    });
}
