import type { Command } from "commander";
import { print, printJson } from "../output.ts";

/** `ullage config …`: the configuration file of `serve`. */
export function addConfigCommand(program: Command): void {
  program
    .command("config")
    .description("the configuration file of serve")
    .command("check <file>")
    .description("say whether `serve --config FILE` would take a file, and all that is wrong with it")
    .option("--json", "print what was found as an object")
    .addHelpText("after", "\nExample:\n  $ ullage config check /etc/ullage/ullage.toml")
    .action(check);
}

async function check(file: string, options: { json?: boolean }): Promise<void> {
  const { checkConfig } = await import("../../config/config-file.ts");
  const { problems } = await checkConfig(file);
  if (options.json === true) {
    printJson({ ok: problems.length === 0, problems });
  } else {
    for (const { line, message, hint } of problems) {
      print(`${file}:${line}: ${message}${hint === undefined ? "" : ` (${hint})`}`);
    }
    if (problems.length === 0) print(`${file} is good`);
  }
  if (problems.length > 0) process.exitCode = 1;
}
