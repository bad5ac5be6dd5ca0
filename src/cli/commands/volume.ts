import type { Command } from "commander";
import { addCreateCommand } from "./volume/create.ts";
import { addExportCommand } from "./volume/export.ts";
import { addHydrateCommand } from "./volume/hydrate.ts";
import { addImportCommand } from "./volume/import.ts";
import { addLsCommand } from "./volume/ls.ts";
import { addMapCommand } from "./volume/map.ts";
import { addPauseCommand, addResumeCommand } from "./volume/pause.ts";
import { addReopenCommand } from "./volume/reopen.ts";
import { addRenameCommand } from "./volume/rename.ts";
import { addResizeCommand } from "./volume/resize.ts";
import { addRevertCommand } from "./volume/revert.ts";
import { addRmCommand } from "./volume/rm.ts";
import { addSetCommand } from "./volume/set.ts";
import { addShowCommand } from "./volume/show.ts";

/** `ullage volume …`: what is done to volumes by asking the daemon. */
export function addVolumeCommand(program: Command): void {
  const volume = program.command("volume").description("make, list, steer and remove volumes (asks the daemon)");
  addCreateCommand(volume);
  addLsCommand(volume);
  addShowCommand(volume);
  addRmCommand(volume);
  addHydrateCommand(volume);
  addPauseCommand(volume);
  addResumeCommand(volume);
  addMapCommand(volume);
  addExportCommand(volume);
  addImportCommand(volume);
  addSetCommand(volume);
  addResizeCommand(volume);
  addRenameCommand(volume);
  addRevertCommand(volume);
  addReopenCommand(volume);
}
