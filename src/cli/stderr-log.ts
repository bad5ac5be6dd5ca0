import { Option, type Command } from "commander";
import type { Log, LogLevel } from "../daemon/log.ts";

const levels: readonly LogLevel[] = ["error", "warn", "info", "debug"];

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

/** Writes one line per message to stderr. */
export function stderrLog({ logLevel, logFormat }: LogOptions): Log {
  const loudest = levels.indexOf(logLevel);
  return (level, message) => {
    if (levels.indexOf(level) > loudest) return;
    const time = new Date().toISOString();
    const line = logFormat === "json" ? JSON.stringify({ time, level, message }) : `${time} ${level} ${message}`;
    process.stderr.write(`${line}\n`);
  };
}
