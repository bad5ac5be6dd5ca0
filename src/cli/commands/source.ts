import type { Command } from "commander";
import { formatSize } from "../../base/units.ts";
import type { SourceLimitsView } from "../../daemon/views.ts";
import { clientCommand, askDaemon, type ClientOptions } from "../client-command.ts";
import { print, printJson } from "../output.ts";
import { rateOption } from "../parse.ts";

/** `ullage source …` */
export function addSourceCommand(program: Command): void {
  const source = program.command("source").description("how sources are read (asks the daemon)");
  clientCommand(
    source,
    "limit",
    "show or change what all sources together may deliver; a change holds until the daemon ends",
    "ullage source limit 50M",
  )
    .argument("[rate]", "bytes per second: 50M, 512k, or off", rateOption)
    .action(async (rate: number | null | undefined, options: ClientOptions) => {
      const body = { bytesPerSecond: rate ?? null };
      const limits = await askDaemon<SourceLimitsView>(
        options,
        "/v1/sources/limits",
        rate === undefined ? undefined : { method: "PATCH", body },
      );
      if (options.json === true) printJson(limits);
      else print(limits.bytesPerSecond === null ? "no limit" : `${formatSize(limits.bytesPerSecond)}/s`);
    });
}
