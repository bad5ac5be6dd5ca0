import type { Command } from "commander";
import { formatSize } from "../../../base/units.ts";
import type { VolumeView } from "../../../daemon/views.ts";
import { clientCommand, findDaemon, type ClientOptions } from "../../client-command.ts";
import { formatTable, print, printJson } from "../../output.ts";
import { hydrationSummary } from "../../progress.ts";

export function addLsCommand(parent: Command): void {
  clientCommand(parent, "ls", "list the volumes", "ullage volume ls").action(async (options: ClientOptions) => {
    const volumes = await allVolumes(options);
    if (options.json === true) {
      printJson({ volumes, next: null });
    } else if (volumes.length === 0) {
      print("there are no volumes yet: make one with `ullage volume create NAME --from SOURCE`");
    } else {
      print(
        formatTable(volumes, [
          { heading: "NAME", value: ({ name }) => name },
          { heading: "SIZE", value: ({ size }) => formatSize(size), right: true },
          { heading: "STATE", value: ({ state }) => state },
          { heading: "WRITTEN", value: ({ writtenBytes }) => formatSize(writtenBytes), right: true },
          { heading: "FETCHED", value: ({ fetchedBytes }) => formatSize(fetchedBytes), right: true },
          { heading: "HYDRATION", value: ({ hydration }) => hydrationSummary(hydration) },
          { heading: "SOURCE", value: ({ source }) => source ?? "-", elastic: true },
        ]),
      );
    }
  });
}

async function allVolumes(options: ClientOptions): Promise<VolumeView[]> {
  const daemon = await findDaemon(options);
  const volumes: VolumeView[] = [];
  let path = "/v1/volumes";
  for (;;) {
    const page = await daemon.call<{ volumes: VolumeView[]; next: string | null }>(path);
    volumes.push(...page.volumes);
    if (page.next === null) return volumes;
    path = `/v1/volumes?cursor=${encodeURIComponent(page.next)}`;
  }
}
