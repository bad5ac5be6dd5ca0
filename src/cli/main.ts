import { Command, CommanderError } from "commander";
import { callsUnderWay } from "../backend/file/mount-calls.ts";
import { describeError, UllageError } from "../base/errors.ts";
import { packageVersion } from "../daemon/version.ts";
import { addAttachCommand } from "./commands/attach.ts";
import { addBlobdCommand } from "./commands/blobd.ts";
import { addBenchCommand } from "./commands/bench.ts";
import { addCacheCommand } from "./commands/cache.ts";
import { addCheckCommand } from "./commands/check.ts";
import { addCompletionCommand } from "./commands/completion.ts";
import { addConfigCommand } from "./commands/config.ts";
import { addDetachCommand } from "./commands/detach.ts";
import { addEventsCommand } from "./commands/events.ts";
import { addExportCommand } from "./commands/export.ts";
import { addHelpCommand } from "./commands/help.ts";
import { addHealthCommand } from "./commands/health.ts";
import { addImageCommand } from "./commands/image.ts";
import { addReclaimCommand } from "./commands/reclaim.ts";
import { addRepairCommand } from "./commands/repair.ts";
import { addRunCommand } from "./commands/run.ts";
import { addServeCommand } from "./commands/serve.ts";
import { addSnapshotCommand } from "./commands/snapshot.ts";
import { addSourceCommand } from "./commands/source.ts";
import { addTokenCommand } from "./commands/token.ts";
import { addVolumeCommand } from "./commands/volume.ts";

/*
 * The command line. The commands are described here at once, so that `--help` is quick; what a command needs to run is
 * imported when it runs. Exit codes: 0 done, 1 failed (`ullage: message` on stderr), 2 used wrongly.
 */
const usageCodes = ["usage", "listen-address", "bad-api"];
const program = new Command("ullage")
  .description("Any disk image, anywhere, becomes a writable disk at once.")
  .version(packageVersion)
  .showHelpAfterError("(see `ullage --help`, or `--help` behind any command)")
  .configureOutput({ outputError: (text, write) => write(text.replace(/^error: /, "ullage: ")) })
  .exitOverride()
  .addHelpText(
    "after",
    `
Examples:
  $ ullage run https://example.org/debian.raw        a writable disk now, until Ctrl-C
  $ ullage serve                                     the daemon; then, elsewhere:
  $ ullage volume create web1 --from ./debian.raw
  $ ullage volume ls`,
  );

addRunCommand(program);
addServeCommand(program);
addVolumeCommand(program);
addSnapshotCommand(program);
addReclaimCommand(program);
addExportCommand(program);
addImageCommand(program);
addCacheCommand(program);
addAttachCommand(program);
addDetachCommand(program);
addSourceCommand(program);
addTokenCommand(program);
addConfigCommand(program);
addHealthCommand(program);
addEventsCommand(program);
addBlobdCommand(program);
addCheckCommand(program);
addRepairCommand(program);
addBenchCommand(program);
addCompletionCommand(program);
addHelpCommand(program);

// Whoever reads the output may have gone (`| head`): that ends neither a command nor a daemon.
for (const stream of [process.stdout, process.stderr]) {
  stream.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code !== "EPIPE") process.exitCode = 1;
  });
}

try {
  await program.parseAsync();
} catch (error) {
  process.exitCode = report(error);
}

// A thread in a call that does not return can't be waited for, as an end by itself would.
if (callsUnderWay() > 0) (await import("../base/posix.ts")).exitNow(Number(process.exitCode ?? 0));

/** @returns the exit code */
function report(error: unknown): number {
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2; // it has said why
  console.error(`ullage: ${describeError(error)}`);
  if (error instanceof UllageError && error.hint !== undefined) console.error(`        ${error.hint}`);
  return error instanceof UllageError && usageCodes.includes(error.code) ? 2 : 1;
}
