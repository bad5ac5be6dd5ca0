import type { AttachmentView } from "../attach/state.ts";
import type { ExportView, VolumeView } from "../daemon/views.ts";
import { allPages, findDaemon, volumePath, type ClientOptions } from "./client-command.ts";

/** What stands behind an attachment now, as the daemon calls it. */
export interface AttachedVolume {
  /** the name of the volume, or VOLUME@SNAPSHOT; an attachment keeps the name that it was made under */
  name: string;
  /** bytes */
  size: number;
}

/**
 * What is attached, found by the ids of the volumes, which outlive a rename.
 * @returns for each attachment; undefined: it is no more, or nobody is there to tell
 */
export async function attachedVolumes(
  attachments: readonly AttachmentView[],
  options: ClientOptions,
): Promise<(AttachedVolume | undefined)[]> {
  try {
    const daemon = await findDaemon(options);
    const volumes = await allPages<VolumeView>(daemon, "/v1/volumes", "volumes");
    const byId = new Map(volumes.map((volume) => [volume.id, volume]));
    return await Promise.all(
      attachments.map(async ({ exportName, size }) => {
        const [id, snapshot] = exportName.split(/@(.*)/s);
        const volume = byId.get(id);
        if (volume !== undefined) {
          return snapshot === undefined ? volume : { name: `${volume.name}@${snapshot}`, size };
        }
        // A name that was added is bound to its volume itself.
        const path = `/v1/exports/${encodeURIComponent(exportName)}`;
        const added = await daemon.call<ExportView>(path).catch(() => undefined);
        if (added === undefined) return undefined;
        if (added.snapshot !== null) return { name: exportName, size };
        return { name: exportName, size: (await daemon.call<VolumeView>(volumePath(added.volume))).size };
      }),
    );
  } catch {
    return attachments.map(() => undefined);
  }
}
