import type { Command } from "commander";
import type { HydrationChange, HydrationView } from "../../../daemon/views.ts";
import { clientCommand, findDaemon, volumePath, type ClientOptions } from "../../client-command.ts";
import { print, printJson } from "../../output.ts";
import { hydrationDetail } from "../../progress.ts";

export function addPauseCommand(parent: Command): void {
  steer(parent, "pause", "stop fetching in the background until `resume`", { state: "paused" });
}

export function addResumeCommand(parent: Command): void {
  steer(parent, "resume", "go on fetching in the background", { state: "running" });
}

function steer(parent: Command, verb: string, description: string, change: HydrationChange): void {
  clientCommand(parent, `${verb} <name>`, description, `ullage volume ${verb} web1`).action(
    async (name: string, options: ClientOptions) => {
      const hydration = await (
        await findDaemon(options)
      ).call<HydrationView>(volumePath(name, "hydration"), {
        method: "PATCH",
        body: change,
      });
      if (options.json === true) printJson(hydration);
      else print(hydrationDetail(hydration));
    },
  );
}
