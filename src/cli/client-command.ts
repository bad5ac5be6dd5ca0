import type { Command } from "commander";
import { ApiClient } from "./api-client.ts";

export interface ClientOptions {
  api?: string;
  json?: boolean;
}

/** A command that asks the daemon: adds the options that all of those have. */
export function clientCommand(parent: Command, usage: string, description: string, example: string): Command {
  return parent
    .command(usage)
    .description(description)
    .option("--api <addr>", "where the daemon listens: unix:PATH (else $ULLAGE_API, ./ullage-data, /var/lib/ullage)")
    .option("--json", "print the REST object")
    .addHelpText("after", `\nExample:\n  $ ${example}`);
}

export function findDaemon(options: ClientOptions): ApiClient {
  return ApiClient.find(options.api);
}

/** The path of a volume in the API. */
export function volumePath(name: string, ...below: string[]): string {
  return ["/v1/volumes", encodeURIComponent(name), ...below].join("/");
}
