import { resolve } from "node:path";
import type { Command } from "commander";
import { UllageError } from "../../base/errors.ts";
import type { RepairStep } from "../../daemon/offline/offline-repair.ts";
import { print, printJson } from "../output.ts";

interface Options {
  yes?: boolean;
  json?: boolean;
}

export function addRepairCommand(program: Command): void {
  program
    .command("repair <data>")
    .description("make a damaged data directory that no daemon has usable again; says first what would be lost")
    .option("--yes", "do it without asking")
    .option("--json", "print what is to be done as an object; without --yes nothing is done")
    .addHelpText("after", "\nExample:\n  $ ullage repair ./ullage-data")
    .action(repair);
}

async function repair(path: string, options: Options): Promise<void> {
  const { OfflineData } = await import("../../daemon/offline/offline-data.ts");
  const { planRepair } = await import("../../daemon/offline/offline-repair.ts");
  const data = await OfflineData.open(resolve(path), "repair");
  try {
    const { steps, hopeless } = await planRepair(data);
    if (hopeless.length > 0) process.exitCode = 1;
    if (options.json === true) {
      const described = steps.map(({ action, losses }) => ({ action, losses }));
      printJson({ steps: described, hopeless, done: options.yes === true });
    } else {
      describe(steps, hopeless);
    }
    if (steps.length === 0 || !(await agreed(steps, options))) return;
    for (const step of steps) await step.run();
    if (options.json !== true) print("done");
  } finally {
    await data.close();
  }
}

function describe(steps: RepairStep[], hopeless: string[]): void {
  if (steps.length === 0 && hopeless.length === 0) print("nothing is damaged");
  for (const { action, losses } of steps) {
    print(`- ${action}`);
    for (const loss of losses) print(`    lost: ${loss}`);
  }
  for (const damage of hopeless) print(`- can't be repaired: ${damage}`);
}

/** @throws UllageError `not-agreed` when nobody can be asked */
async function agreed(steps: RepairStep[], options: Options): Promise<boolean> {
  if (options.yes === true) return true;
  if (options.json === true) return false;
  if (!process.stdin.isTTY) {
    throw new UllageError("not-agreed", "nothing was done", { hint: "add --yes to do it" });
  }
  const { createInterface } = await import("node:readline/promises");
  const terminal = createInterface({ input: process.stdin, output: process.stdout });
  try {
    const losing = steps.some(({ losses }) => losses.length > 0);
    const answer = await terminal.question(losing ? "Do this, losing what is listed? [y/N] " : "Do this? [y/N] ");
    return /^y(es)?$/i.test(answer.trim());
  } finally {
    terminal.close();
  }
}
