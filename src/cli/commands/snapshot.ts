import type { Command } from "commander";
import { UllageError } from "../../base/errors.ts";
import { counted, formatSize } from "../../base/units.ts";
import type { DiffRunView, SnapshotView } from "../../daemon/views.ts";
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
    const call = { method: "POST", body, once: true } as const;
    const view = await askDaemon<SnapshotView>(options, volumePath(volume, "snapshots"), call);
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

  clientCommand(
    snapshot,
    "diff <vol@from> [vol@to]",
    "list the ranges that were written since a snapshot, until a later one or until now",
    "ullage snapshot diff web1@monday web1@tuesday",
  ).action(async (from: string, to: string | undefined, options: ClientOptions) => {
    const runs = await allChanges(from, to, options);
    if (options.json === true) {
      printJson({ runs, next: null });
      return;
    }
    for (const { offset, length } of runs) print(`${offset} ${length}`);
    const bytes = runs.reduce((sum, { length }) => sum + length, 0);
    console.error(`${formatSize(bytes)} in ${counted(runs.length, "range")} may differ (offset and length in bytes)`);
  });

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

/** @throws UllageError `usage` when the two are not of one volume */
async function allChanges(from: string, to: string | undefined, options: ClientOptions): Promise<DiffRunView[]> {
  const { volume, snapshot } = snapshotName(from);
  const query = new URLSearchParams({ limit: "10000" });
  if (to !== undefined) {
    const later = snapshotName(to);
    if (later.volume !== volume) {
      throw new UllageError("usage", `${from} and ${to} are snapshots of two volumes`, {
        hint: "only snapshots of one volume can be compared",
      });
    }
    query.set("to", later.snapshot);
  }
  const daemon = await findDaemon(options);
  const path = volumePath(volume, "snapshots", encodeURIComponent(snapshot), "diff");
  const runs: DiffRunView[] = [];
  for (;;) {
    const page = await daemon.call<{ runs: DiffRunView[]; next: number | null }>(`${path}?${query.toString()}`);
    runs.push(...page.runs);
    if (page.next === null) return runs;
    query.set("offset", String(page.next));
  }
}
