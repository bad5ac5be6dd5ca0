import type { Command } from "commander";
import type { AttachmentView } from "../../../attach/state.ts";
import { formatSize } from "../../../base/units.ts";
import type { HealthView, VolumeView } from "../../../daemon/views.ts";
import { clientCommand, askDaemon, volumePath, type ClientOptions } from "../../client-command.ts";
import { print, printJson } from "../../output.ts";
import { sizeOption } from "../../parse.ts";

interface Options extends ClientOptions {
  force?: boolean;
}

export function addResizeCommand(parent: Command): void {
  clientCommand(
    parent,
    "resize <name>",
    "grow a volume while it is in use; new connections see the new size",
    "ullage volume resize web1 40G",
  )
    .argument("<size>", "512, 64k, 10M, 1.5G, 2T", sizeOption)
    .option("--force", "shrink it, if nothing was written behind the new end; closes its connections")
    .action(async (name: string, size: number, options: Options) => {
      const body = { size, ...(options.force === true ? { force: true } : {}) };
      const volume = await askDaemon<VolumeView>(options, volumePath(name), { method: "PATCH", body });
      if (options.json === true) {
        printJson(volume);
        return;
      }
      print(`${name} has ${formatSize(volume.size)}`);
      const attached = await attachmentOf(volume, options);
      if (attached === undefined || attached.size === volume.size) return;
      const { howToGrow } = await import("../attach.ts");
      print(`${attached.device ?? attached.file} keeps its ${formatSize(attached.size)}: ${howToGrow(attached)}`);
    });
}

/** What this volume of this daemon is attached as on this host, as far as this user can tell. */
async function attachmentOf({ id }: VolumeView, options: ClientOptions): Promise<AttachmentView | undefined> {
  const { listAttachments } = await import("../../../attach/list.ts");
  let found: AttachmentView | undefined;
  try {
    found = listAttachments().find(({ exportName }) => exportName === id);
  } catch {
    return undefined; // no place for the state: nothing was ever attached
  }
  if (found === undefined) return undefined;
  const { dataDirectory } = await askDaemon<HealthView>(options, "/v1/health");
  return dataDirectory === found.dataDirectory ? found : undefined;
}
