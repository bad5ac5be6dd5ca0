import pino from "pino";
import { withoutSecrets } from "../base/without-secrets.ts";
import type { Log, LogFields } from "../daemon/log.ts";
import { levels, type LogOptions } from "./log-options.ts";
import { RepeatedMessages } from "./repeated-messages.ts";

/**
 * Writes one line per message to stderr: for people time, level and message, or JSON with the fields besides. Nothing
 * that looks like credentials gets there, and a message that comes again and again does so every ten seconds.
 */
export function stderrLog({ logLevel, logFormat }: LogOptions): Log {
  const loudest = levels.indexOf(logLevel);
  const write = logFormat === "json" ? jsonWriter() : writeText;
  const repeated = new RepeatedMessages();
  return (level, message, fields = {}) => {
    if (levels.indexOf(level) > loudest) return;
    const clean = withoutSecrets(message);
    const said = level === "debug" ? clean : repeated.say(clean);
    if (said !== undefined) write(level, said, fields);
  };
}

const writeText: Log = (level, message) => {
  process.stderr.write(`${new Date().toISOString()} ${level} ${message}\n`);
};

/** `{"level":"info","time":"2026-01-31T12:00:00.000Z",…fields,"msg":"…"}` */
function jsonWriter(): Log {
  const logger = pino(
    {
      level: "debug", // what is too quiet does not get here
      base: null,
      timestamp: () => `,"time":"${new Date().toISOString()}"`,
      formatters: { level: (label) => ({ level: label }) },
    },
    pino.destination({ fd: process.stderr.fd, sync: true }),
  );
  return (level, message, fields = {}) => logger[level](cleanFields(fields), message);
}

function cleanFields(fields: LogFields): LogFields {
  return Object.fromEntries(
    Object.entries(fields).map(([key, value]) => [key, typeof value === "string" ? withoutSecrets(value) : value]),
  );
}
