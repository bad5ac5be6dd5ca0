import type { Command } from "commander";
import type { VolumeView } from "../../../daemon/views.ts";
import { clientCommand, askDaemon, volumePath, type ClientOptions } from "../../client-command.ts";
import { print, printJson } from "../../output.ts";

export function addRenameCommand(parent: Command): void {
  clientCommand(
    parent,
    "rename <name> <new-name>",
    "give a volume another name; open connections go on",
    "ullage volume rename web1 web-old",
  ).action(async (name: string, newName: string, options: ClientOptions) => {
    const body = { name: newName };
    const volume = await askDaemon<VolumeView>(options, volumePath(name), { method: "PATCH", body });
    if (options.json === true) printJson(volume);
    else print(`${name} is now ${volume.name}`);
  });
}
