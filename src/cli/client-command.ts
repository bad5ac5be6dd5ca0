import type { Command } from "commander";
import type { ApiClient, Call } from "./api-client.ts";

export interface ClientOptions {
  api?: string;
  tokenFile?: string;
  json?: boolean;
}

/** A command that asks the daemon: adds the options that all of those have. */
export function clientCommand(parent: Command, usage: string, description: string, example: string): Command {
  return parent
    .command(usage)
    .description(description)
    .option(
      "--api <addr>",
      "where the daemon is: unix:PATH, HOST:PORT or http(s)://HOST (else $ULLAGE_API, ./ullage-data, /var/lib/ullage)",
    )
    .option("--token-file <file>", "holds the token for an API on TCP (else $ULLAGE_TOKEN)")
    .option("--json", "print the REST object")
    .addHelpText("after", `\nExample:\n  $ ${example}`);
}

/** Imported only now: `--help` needs no HTTP. @throws UllageError `no-daemon`, `bad-api`, `token-file` */
export async function findDaemon(options: ClientOptions): Promise<ApiClient> {
  const { ApiClient } = await import("./api-client.ts");
  return ApiClient.find(options.api, options.tokenFile);
}

/** One question to the daemon. @throws UllageError with what the daemon answered */
export async function askDaemon<T>(options: ClientOptions, path: string, call?: Call): Promise<T> {
  return (await findDaemon(options)).call<T>(path, call);
}

/** All objects of a list, page by page. @param key of the list in the answer */
export async function allPages<T>(daemon: ApiClient, path: string, key: string): Promise<T[]> {
  const found: T[] = [];
  for (let cursor: string | null = ""; cursor !== null;) {
    const query = cursor === "" ? "" : `?cursor=${encodeURIComponent(cursor)}`;
    const answer: { next: string | null } = await daemon.call(`${path}${query}`);
    found.push(...(answer as unknown as Record<string, T[]>)[key]);
    cursor = answer.next;
  }
  return found;
}

/** The path of a volume in the API. */
export function volumePath(name: string, ...below: string[]): string {
  return ["/v1/volumes", encodeURIComponent(name), ...below].join("/");
}
