import { InvalidArgumentError, type Command } from "commander";
import type { Settings } from "../../../catalog/metadata-store.ts";
import type { VolumeView } from "../../../daemon/views.ts";
import { clientCommand, findDaemon, volumePath, type ClientOptions } from "../../client-command.ts";
import { print, printJson } from "../../output.ts";
import { settingOption } from "../../parse.ts";

export function addSetCommand(parent: Command): void {
  clientCommand(
    parent,
    "set <name> <key=value...>",
    "change settings: hydrate=auto|off sync=normal|always remoteAfterPowerLoss=refuse|serve",
    "ullage volume set web1 sync=always",
  ).action(async (name: string, pairs: string[], options: ClientOptions) => {
    const settings = pairs.reduce<Partial<Settings>>((before, pair) => settingOption(pair, before), {});
    if (Object.keys(settings).length === 0) throw new InvalidArgumentError("no setting given");
    const volume = await (
      await findDaemon(options)
    ).call<VolumeView>(volumePath(name), {
      method: "PATCH",
      body: { settings },
    });
    if (options.json === true) printJson(volume);
    else
      print(
        `${name}: ${Object.entries(volume.settings)
          .map(([key, value]) => `${key}=${value}`)
          .join(" ")}`,
      );
  });
}
