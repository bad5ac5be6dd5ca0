import type { Command } from "commander";
import { UllageError } from "../../../base/errors.ts";
import type { HydrationChange, HydrationView } from "../../../daemon/views.ts";
import type { ApiClient } from "../../api-client.ts";
import { clientCommand, findDaemon, volumePath, type ClientOptions } from "../../client-command.ts";
import { print, printJson } from "../../output.ts";
import { priorityOption, rateOption } from "../../parse.ts";
import { hydrationDetail, ProgressLine } from "../../progress.ts";

const pollMs = 500;
/** Damage that is still there after so long has been tried again once or twice, and is there to stay. */
const damagePatienceMs = 5000;

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
    .option(
      "--wait",
      "until the source is not needed any more, or all is here but what is damaged there; shows progress",
    )
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
  let damagedSince = Infinity;
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
    damagedSince = onlyDamageIsLeft(hydration) ? Math.min(damagedSince, performance.now()) : Infinity;
    if (performance.now() - damagedSince >= damagePatienceMs) {
      line.end();
      throw new UllageError("image-damaged", hydration.reason ?? "a part of the image can't be had", {
        hint: "everything else is here, and the damaged part goes on being tried; mend the source, then `ullage volume resume NAME`",
      });
    }
    await new Promise((resolve) => setTimeout(resolve, pollMs));
  }
}

/** Everything is here that the source gives: what is missing can't be had though it answers. */
function onlyDamageIsLeft({ state, readyBytes, totalBytes, damagedBytes }: HydrationView): boolean {
  return state === "waiting" && damagedBytes > 0 && readyBytes + damagedBytes >= totalBytes;
}
