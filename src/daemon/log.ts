/** Where the daemon's messages go. */
export type LogLevel = "error" | "warn" | "info" | "debug";
export type Log = (level: LogLevel, message: string) => void;
