import type { Command } from "commander";

/** What all commands that read sources take from a configuration file. */
export const sourceOptions = [
  "allowSources",
  "sourceSettings",
  "sourceLimit",
  "cacheCapacity",
  "cacheReserve",
  "logLevel",
  "logFormat",
];

/**
 * Adds --config: values of the file stand in for the flags that were not given. Every flag of `serve` has its key in
 * config/schema.ts.
 * @param taken attributes of the options that this command takes from the file; default: all
 */
export function addConfigOption(command: Command, taken?: readonly string[]): Command {
  return command
    .option("--config <file>", "settings in a TOML file, which flags override; `ullage help config` lists its keys")
    .hook("preAction", async (_, running) => {
      const { config } = running.opts<{ config?: string }>();
      if (config === undefined) return;
      const { readConfig } = await import("../config/config-file.ts");
      for (const [option, value] of Object.entries(await readConfig(config))) {
        if (taken?.includes(option) === false) continue;
        const source = running.getOptionValueSource(option);
        if (source === undefined || source === "default") running.setOptionValueWithSource(option, value, "config");
      }
    });
}
