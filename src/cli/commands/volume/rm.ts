import type { Command } from "commander";
import { UllageError } from "../../../base/errors.ts";
import { clientCommand, askDaemon, volumePath, type ClientOptions } from "../../client-command.ts";
import { print, printJson } from "../../output.ts";

interface Options extends ClientOptions {
  force?: boolean;
  snapshots?: boolean;
}

export function addRmCommand(parent: Command): void {
  clientCommand(parent, "rm <name>", "remove a volume and everything written to it", "ullage volume rm web1")
    .option("--snapshots", "remove its snapshots too; clones live on")
    .option("--force", "close its connections first")
    .action(async (name: string, options: Options) => {
      if (name.includes("@")) {
        throw new UllageError("usage", `'${name}' is the name of a snapshot`, { hint: `ullage snapshot rm ${name}` });
      }
      const query = new URLSearchParams();
      if (options.force === true) query.set("force", "true");
      if (options.snapshots === true) query.set("snapshots", "true");
      await askDaemon(options, `${volumePath(name)}?${query.toString()}`, { method: "DELETE" });
      if (options.json === true) printJson({ name, removed: true });
      else print(`${name} is gone`);
    });
}
