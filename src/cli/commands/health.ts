import type { Command } from "commander";
import type { HealthView } from "../../daemon/views.ts";
import { askDaemon, clientCommand, type ClientOptions } from "../client-command.ts";
import { formatTable, print, printJson } from "../output.ts";

export function addHealthCommand(program: Command): void {
  clientCommand(
    program,
    "health",
    "what the daemon finds when it looks at itself; exit code 1 when something fails",
    "ullage health",
  ).action(async (options: ClientOptions) => {
    const health = await askDaemon<HealthView>(options, "/v1/health");
    if (options.json === true) printJson(health);
    else print(describe(health));
    if (health.status === "fail") process.exitCode = 1;
  });
}

function describe({ status, checks, version, pid, dataDirectory }: HealthView): string {
  const table = formatTable(checks, [
    { heading: "CHECK", value: ({ name }) => name },
    { heading: "STATUS", value: (check) => check.status },
    { heading: "WHAT WAS FOUND", value: ({ message }) => message ?? "" },
  ]);
  return `${status}: Ullage ${version}, process ${pid}, ${dataDirectory}\n\n${table}`;
}
