import { InvalidArgumentError, Option, type Command } from "commander";
import { formatDuration } from "../../../base/units.ts";
import { askDaemon, clientCommand, type ClientOptions } from "../../client-command.ts";
import { print, printJson } from "../../output.ts";

interface Options extends ClientOptions {
  scope: "read" | "write" | "admin";
  expires?: number;
}

export function addTokenCreateCommand(parent: Command): void {
  clientCommand(
    parent,
    "create <name>",
    "make a token and print it, this once: only its hash is kept",
    "ullage token create grafana --scope read --expires 90d > grafana.token",
  )
    .addOption(
      new Option("--scope <scope>", "read: look; write: change too; admin: tokens and accepting loss too")
        .choices(["read", "write", "admin"])
        .makeOptionMandatory(),
    )
    .option("--expires <time>", "when it ends: 45s, 30m, 12h, 30d; default: never", lifeOption)
    .action(create);
}

async function create(name: string, options: Options): Promise<void> {
  const { scope, expires } = options;
  const body = { name, scope, ...(expires === undefined ? {} : { expiresInSeconds: expires }) };
  const made = await askDaemon<{ secret: string }>(options, "/v1/tokens", { method: "POST", body, once: true });
  if (options.json === true) {
    printJson(made);
    return;
  }
  print(made.secret); // alone on stdout, so that it can go into a file
  const until = expires === undefined ? "until it is removed" : `for ${formatDuration(expires)}`;
  console.error(`'${name}' has scope ${scope} ${until}; this is the only time it is shown`);
}

const unitSeconds: Readonly<Record<string, number>> = { s: 1, m: 60, h: 3600, d: 86_400 };

/** @returns seconds */
function lifeOption(text: string): number {
  const [, digits, unit] = /^([1-9]\d{0,8})([smhd])$/.exec(text) ?? [];
  if (digits !== undefined) return Number(digits) * unitSeconds[unit];
  throw new InvalidArgumentError("times look like 45s, 30m, 12h or 30d");
}
