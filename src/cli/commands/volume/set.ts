import type { Command } from "commander";
import type { Settings } from "../../../catalog/metadata-store.ts";
import type { VolumeView } from "../../../daemon/views.ts";
import { clientCommand, askDaemon, volumePath, type ClientOptions } from "../../client-command.ts";
import { print, printJson } from "../../output.ts";
import { settingOption } from "../../parse.ts";

export function addSetCommand(parent: Command): void {
  clientCommand(parent, "set <name>", "change settings", "ullage volume set web1 sync=always")
    .argument(
      "<key=value...>",
      "hydrate=auto|off  sync=normal|always  remoteAfterPowerLoss=refuse|serve",
      settingOption,
    )
    .action(async (name: string, settings: Partial<Settings>, options: ClientOptions) => {
      const volume = await askDaemon<VolumeView>(options, volumePath(name), { method: "PATCH", body: { settings } });
      if (options.json === true) {
        printJson(volume);
      } else {
        const pairs = Object.entries(volume.settings).map(([key, value]) => `${key}=${value}`);
        print(`${name}: ${pairs.join(" ")}`);
      }
    });
}
