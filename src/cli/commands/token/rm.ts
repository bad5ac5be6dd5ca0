import type { Command } from "commander";
import { askDaemon, clientCommand, type ClientOptions } from "../../client-command.ts";
import { print, printJson } from "../../output.ts";

export function addTokenRmCommand(parent: Command): void {
  clientCommand(parent, "rm <name>", "remove a token: it opens nothing any more", "ullage token rm grafana").action(
    async (name: string, options: ClientOptions) => {
      await askDaemon(options, `/v1/tokens/${encodeURIComponent(name)}`, { method: "DELETE" });
      if (options.json === true) printJson({ name, removed: true });
      else print(`token ${name} is gone: nobody gets in with it any more`);
    },
  );
}
