import type { Command } from "commander";
import { print, printJson } from "../output.ts";

interface Options {
  json?: boolean;
}

export function addDetachCommand(program: Command): void {
  program
    .command("detach <name>")
    .description("take an attached volume away from this host; unmounts it first")
    .option("--json", "print what was attached as an object")
    .addHelpText("after", "\nExample:\n  $ ullage detach web1")
    .action(async (name: string, options: Options) => {
      const { detach } = await import("../../attach/detach.ts");
      const view = await detach(name, ({ reason }) => {
        process.stderr.write(`ullage: waiting for the daemon, to write what is not written yet (${reason})\n`);
      });
      if (options.json === true) printJson({ name, detached: view !== undefined, attachment: view ?? null });
      else print(view === undefined ? `${name} is not attached` : `${name} is detached`);
    });
}
