import type { Command } from "commander";
import { UllageError } from "../../../base/errors.ts";
import type { HydrationChange, HydrationView } from "../../../daemon/views.ts";
import type { ApiClient } from "../../api-client.ts";
import { clientCommand, findDaemon, volumePath, type ClientOptions } from "../../client-command.ts";
import { print, printJson } from "../../output.ts";
import { priorityOption, rateOption } from "../../parse.ts";
import { hydrationDetail, ProgressLine } from "../../progress.ts";

const pollMs = 500;

interface Options extends ClientOptions {
  rate?: number | null;
  priority?: number;
  wait?: boolean;
}

export function addHydrateCommand(parent: Command): void {
  clientCommand(
    parent,
    "hydrate <name>",
    "fetch a volume's image in the background, or change how",
    "ullage volume hydrate web1 --rate 50M --wait",
  )
    .option("--rate <size>", "bytes per second at most, e.g. 50M; `off`: no limit", rateOption)
    .option("--priority <n>", "among volumes filled at the same time; more is sooner", priorityOption)
    .option("--wait", "until the source is not needed any more; shows progress")
    .action(async (name: string, options: Options) => {
      const daemon = await findDaemon(options);
      const change: HydrationChange = {
        state: "running",
        ...(options.rate === undefined ? {} : { limitBytesPerSecond: options.rate }),
        ...(options.priority === undefined ? {} : { priority: options.priority }),
      };
      const path = volumePath(name, "hydration");
      let hydration = await daemon.call<HydrationView>(path, { method: "PATCH", body: change });
      if (options.wait === true) hydration = await waitUntilDetached(daemon, path, options.json === true);
      if (options.json === true) printJson(hydration);
      else if (options.wait !== true) print(hydrationDetail(hydration));
    });
}

async function waitUntilDetached(daemon: ApiClient, path: string, quiet: boolean): Promise<HydrationView> {
  const line = new ProgressLine();
  for (;;) {
    const hydration = await daemon.call<HydrationView>(path);
    const text = hydrationDetail(hydration);
    if (hydration.state === "detached" || hydration.state === "none") {
      if (!quiet) line.end(text);
      return hydration;
    }
    if (!quiet) line.show(text);
    if (hydration.state === "paused" && hydration.reason !== "no-space") {
      line.end();
      throw new UllageError("paused", "hydration was paused by somebody", { hint: "`ullage volume resume NAME`" });
    }
    await new Promise((resolve) => setTimeout(resolve, pollMs));
  }
}
