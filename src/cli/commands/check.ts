import { resolve } from "node:path";
import type { Command } from "commander";
import { counted } from "../../base/units.ts";
import { print, printJson } from "../output.ts";

export function addCheckCommand(program: Command): void {
  program
    .command("check <data>")
    .description("verify every checksum and reference of a data directory that no daemon has; changes nothing")
    .option("--json", "print what was found as an object")
    .addHelpText("after", "\nExample:\n  $ ullage check ./ullage-data")
    .action(check);
}

async function check(path: string, options: { json?: boolean }): Promise<void> {
  const { OfflineData } = await import("../../daemon/offline/offline-data.ts");
  const { checkData } = await import("../../daemon/offline/offline-check.ts");
  const data = await OfflineData.open(resolve(path), "check");
  try {
    const problems = await checkData(data);
    const damaged = problems.some(({ severity }) => severity === "damage");
    const { warnings } = data.directory;
    if (options.json === true) {
      printJson({ ok: !damaged, volumes: data.volumeIds.length, blobs: data.blobIds.length, problems, warnings });
    } else {
      for (const { message } of warnings) print(`warning: ${message}`);
      for (const { severity, message } of problems) print(`${severity}: ${message}`);
      const what = `${counted(data.volumeIds.length, "volume")} and ${counted(data.blobIds.length, "blob")} checked`;
      print(damaged ? `${what}: damaged; \`ullage repair ${path}\` says what can be done` : `${what}: good`);
    }
    if (damaged) process.exitCode = 1;
  } finally {
    await data.close();
  }
}
