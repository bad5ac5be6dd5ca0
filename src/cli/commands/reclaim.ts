import type { Command } from "commander";
import { counted, formatSize } from "../../base/units.ts";
import type { AllSpaceView, ReclaimView } from "../../daemon/views.ts";
import { clientCommand, findDaemon, type ClientOptions } from "../client-command.ts";
import { print, printJson } from "../output.ts";

export function addReclaimCommand(program: Command): void {
  clientCommand(
    program,
    "reclaim",
    "free blocks that no volume and no snapshot needs any more; Ctrl-C ends it (asks the daemon)",
    "ullage reclaim",
  ).action(async (options: ClientOptions) => {
    const daemon = await findDaemon(options);
    const { callAndFollow } = await import("../follow-job.ts");
    const call = { method: "POST" } as const;
    const result = await callAndFollow<ReclaimView>(daemon, "/v1/reclaim", call, options.json === true);
    if (options.json === true) {
      printJson(result);
      return;
    }
    print(
      `${formatSize(result.reclaimedBytes)} freed; ${counted(result.layers, "layer")} ${result.layers === 1 ? "holds" : "hold"} only what is needed`,
    );
    const { exclusiveBytes, sharedBytes, cachedBytes } = await daemon.call<AllSpaceView>("/v1/space");
    const written = `${formatSize(exclusiveBytes)} of single volumes, ${formatSize(sharedBytes)} shared by several`;
    print(`on disk: ${written}, ${formatSize(cachedBytes)} of images`);
    if (result.leftAlone === 0) return;
    print(`${counted(result.leftAlone, "layer")} ${result.leftAlone === 1 ? "was" : "were"} left alone:`);
    for (const reason of result.reasons) print(`  ${reason}`);
  });
}
