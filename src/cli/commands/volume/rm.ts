import type { Command } from "commander";
import { clientCommand, askDaemon, volumePath, type ClientOptions } from "../../client-command.ts";
import { print, printJson } from "../../output.ts";

interface Options extends ClientOptions {
  force?: boolean;
}

export function addRmCommand(parent: Command): void {
  clientCommand(parent, "rm <name>", "remove a volume and everything written to it", "ullage volume rm web1")
    .option("--force", "close its connections first")
    .action(async (name: string, options: Options) => {
      const query = options.force === true ? "?force=true" : "";
      await askDaemon(options, `${volumePath(name)}${query}`, { method: "DELETE" });
      if (options.json === true) printJson({ name, removed: true });
      else print(`${name} is gone`);
    });
}
