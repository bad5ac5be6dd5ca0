import type { Command } from "commander";
import { UllageError } from "../../../base/errors.ts";
import { formatSize } from "../../../base/units.ts";
import type { BlobView, OriginView, SpaceView, VolumeView } from "../../../daemon/views.ts";
import { clientCommand, askDaemon, volumePath, type ClientOptions } from "../../client-command.ts";
import { describeIdentity } from "../../describe-identity.ts";
import { formatFields, print, printJson } from "../../output.ts";
import { hydrationDetail } from "../../progress.ts";

export function addShowCommand(parent: Command): void {
  clientCommand(parent, "show <name>", "show one volume", "ullage volume show web1").action(
    async (name: string, options: ClientOptions) => {
      const volume = await askDaemon<VolumeView>(options, volumePath(name));
      if (options.json === true) {
        printJson(volume);
        return;
      }
      print(describeVolume(volume));
      if (volume.state === "creating") return;
      const pinnedBy = await describePin(volume, options);
      if (pinnedBy !== undefined) print(pinnedBy);
      print(await describeSpace(name, options));
    },
  );
}

async function describeSpace(name: string, options: ClientOptions): Promise<string> {
  const space = await askDaemon<SpaceView>(options, volumePath(name, "space"));
  const shared = space.sharedBytes === 0 ? "" : `, ${formatSize(space.sharedBytes)} shared with other volumes`;
  return formatFields([["on disk    ", `${formatSize(space.exclusiveBytes)} of its own${shared}`]]);
}

/** By what its image is pinned, and whether its bytes were compared with that. */
async function describePin({ blob }: VolumeView, options: ClientOptions): Promise<string | undefined> {
  if (blob === null) return undefined;
  try {
    return formatFields([["pinned by  ", describeIdentity(await askDaemon<BlobView>(options, `/v1/blobs/${blob}`))]]);
  } catch (error) {
    // A cache that is another process's is known as far as it was used.
    if (error instanceof UllageError && error.code === "not-found") return undefined;
    throw error;
  }
}

function describeSource({ source, pinned }: VolumeView): string {
  if (source === null) return "none (made empty)";
  return pinned === false ? `${source} (unpinned: a change could go unnoticed)` : source;
}

function describeOrigin({ volume, snapshot, removed }: OriginView): string {
  return `${snapshot === null ? volume : `${volume}@${snapshot}`}${removed ? " (removed since)" : ""}`;
}

export function describeVolume(volume: VolumeView): string {
  const { state, reason, settings } = volume;
  return formatFields([
    ["name", volume.name],
    ["id", volume.id],
    ["size", `${formatSize(volume.size)} (${volume.size} bytes)`],
    ["state", reason === null ? state : `${state}: ${reason}`],
    ["source", describeSource(volume)],
    ...(volume.origin === null ? [] : [["cloned from", describeOrigin(volume.origin)] as const]),
    ["format", volume.format ?? "-"],
    ["fetched", formatSize(volume.fetchedBytes)],
    ["written", formatSize(volume.writtenBytes)],
    ["hydration", hydrationDetail(volume.hydration)],
    [
      "settings",
      Object.entries(settings)
        .map(([key, value]) => `${key}=${value}`)
        .join(" "),
    ],
    ["connections", String(volume.connections)],
    ["created", volume.createdAt],
  ]);
}
