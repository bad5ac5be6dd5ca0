import { Option, type Command } from "commander";
import type { LogLevel } from "../daemon/log.ts";

/** The quietest first. */
export const levels: readonly LogLevel[] = ["error", "warn", "info", "debug"];

export interface LogOptions {
  logLevel: LogLevel;
  logFormat: "text" | "json";
}

/** Adds --log-level and --log-format. */
export function addLogOptions(command: Command, defaultLevel: LogLevel): Command {
  return command
    .addOption(new Option("--log-level <level>", "what goes to stderr").choices(levels).default(defaultLevel))
    .addOption(new Option("--log-format <format>", "text or json lines").choices(["text", "json"]).default("text"));
}
