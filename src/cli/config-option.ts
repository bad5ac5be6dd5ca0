import type { Command } from "commander";

/**
 * Adds --config: values of the file stand in for the flags that were not given. Every flag of the command has its key in
 * config/schema.ts.
 */
export function addConfigOption(command: Command): Command {
  return command
    .option("--config <file>", "settings in a TOML file, which flags override; `ullage help config` lists its keys")
    .hook("preAction", async (_, running) => {
      const { config } = running.opts<{ config?: string }>();
      if (config === undefined) return;
      const { readConfig } = await import("../config/config-file.ts");
      for (const [option, value] of Object.entries(await readConfig(config))) {
        const source = running.getOptionValueSource(option);
        if (source === undefined || source === "default") running.setOptionValueWithSource(option, value, "config");
      }
    });
}
