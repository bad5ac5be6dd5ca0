import type { Command } from "commander";
import { formatSize } from "../../base/units.ts";
import type { SnapshotView } from "../../daemon/views.ts";
import { clientCommand, askDaemon, findDaemon, volumePath, type ClientOptions } from "../client-command.ts";
import { formatTable, print, printJson } from "../output.ts";
import { snapshotName } from "../parse.ts";

interface RemoveOptions extends ClientOptions {
  force?: boolean;
}

/** `ullage snapshot …` */
export function addSnapshotCommand(program: Command): void {
  const snapshot = program.command("snapshot").description("take, list and remove snapshots (asks the daemon)");
  clientCommand(
    snapshot,
    "create <vol@snap>",
    "freeze a volume as it is, at once; it is also the read-only NBD export VOL@SNAP",
    "ullage snapshot create web1@before-upgrade",
  ).action(async (name: string, options: ClientOptions) => {
    const { volume, snapshot: own } = snapshotName(name);
    const body = { name: own };
    const view = await askDaemon<SnapshotView>(options, volumePath(volume, "snapshots"), { method: "POST", body });
    if (options.json === true) printJson(view);
    else print(`${name} is taken: NBD export '${name}', read-only`);
  });

  clientCommand(snapshot, "ls [volume]", "list the snapshots of a volume, or all", "ullage snapshot ls web1").action(
    async (volume: string | undefined, options: ClientOptions) => {
      const snapshots = await allSnapshots(volume, options);
      if (options.json === true) {
        printJson({ snapshots, next: null });
      } else if (snapshots.length === 0) {
        print("there are no snapshots: take one with `ullage snapshot create VOL@SNAP`");
      } else {
        print(
          formatTable(snapshots, [
            { heading: "SNAPSHOT", value: (view) => `${view.volume}@${view.name}` },
            { heading: "SIZE", value: ({ size }) => formatSize(size), right: true },
            { heading: "TAKEN", value: ({ createdAt }) => createdAt },
          ]),
        );
      }
    },
  );

  clientCommand(snapshot, "rm <vol@snap>", "remove a snapshot; clones live on", "ullage snapshot rm web1@old")
    .option("--force", "close its connections first")
    .action(async (name: string, options: RemoveOptions) => {
      const { volume, snapshot: own } = snapshotName(name);
      const query = options.force === true ? "?force=true" : "";
      const path = volumePath(volume, "snapshots", encodeURIComponent(own));
      await askDaemon(options, `${path}${query}`, { method: "DELETE" });
      if (options.json === true) printJson({ name, removed: true });
      else print(`${name} is gone`);
    });
}

async function allSnapshots(volume: string | undefined, options: ClientOptions): Promise<SnapshotView[]> {
  const daemon = await findDaemon(options);
  const snapshots: SnapshotView[] = [];
  const query = new URLSearchParams(volume === undefined ? {} : { volume });
  for (;;) {
    const page = await daemon.call<{ snapshots: SnapshotView[]; next: string | null }>(
      `/v1/snapshots?${query.toString()}`,
    );
    snapshots.push(...page.snapshots);
    if (page.next === null) return snapshots;
    query.set("cursor", page.next);
  }
}
