import type { Command } from "commander";
import { UllageError } from "../../base/errors.ts";
import { counted, formatSize } from "../../base/units.ts";
import type { JobObject } from "../../api/job-object.ts";
import type { ConnectionEventView } from "../../daemon/events.ts";
import type { Warning } from "../../daemon/health/health.ts";
import type { ExportView, ReclaimView, SnapshotView, VolumeView } from "../../daemon/views.ts";
import { clientCommand, findDaemon, type ClientOptions } from "../client-command.ts";
import { print } from "../output.ts";
import { hydrationSummary } from "../progress.ts";

export function addEventsCommand(program: Command): void {
  clientCommand(
    program,
    "events",
    "what happens, as it happens: volumes, connections, jobs, warnings; until Ctrl-C",
    "ullage events --json | jq 'select(.event == \"warning\")'",
  ).action(follow);
}

async function follow(options: ClientOptions): Promise<void> {
  const { stopSignal } = await import("../signals.ts");
  const { readEvents } = await import("../server-sent-events.ts");
  const unread = new AbortController();
  process.stdout.once("error", () => unread.abort()); // whoever read this has gone
  const stop = AbortSignal.any([stopSignal(), unread.signal]);
  const daemon = await findDaemon(options);
  try {
    for await (const { id, name, data } of readEvents(await daemon.stream("/v1/events", stop))) {
      const object = JSON.parse(data) as object;
      if (name === "closed") throw revived(object as Closed);
      if (options.json === true) print(JSON.stringify({ id, event: name, data: object }));
      else print(`${new Date().toTimeString().slice(0, 8)}  ${name.padEnd(nameWidth)}  ${describe(name, object)}`);
    }
  } catch (error) {
    if (stop.aborted) return;
    if (error instanceof UllageError) throw error;
  }
  throw new UllageError("no-answer", "the daemon has ended its events", {
    hint: "it was stopped, or is being restarted",
  });
}

/** Data of the daemon's last word. */
interface Closed {
  code: string;
  detail: string;
  hint?: string;
}

function revived({ code, detail, hint }: Closed): UllageError {
  return new UllageError(code, detail, hint === undefined ? {} : { hint });
}

const nameWidth = "connection-opened".length;

function describe(name: string, data: object): string {
  if (name === "warning") return (data as Warning).message;
  if (name === "job") {
    const { target, kind, state, progress, error } = data as JobObject;
    const { done, total, unit } = progress;
    const amount = (count: number): string => (unit === "bytes" ? formatSize(count) : String(count));
    const far = total === null ? "" : ` ${amount(done)} of ${amount(total)}${unit === "layers" ? " layers" : ""}`;
    return `${target === null ? kind : `${kind} ${target}`}: ${state}${error === null ? far : `: ${error.detail}`}`;
  }
  if (name === "space-reclaimed") {
    const { reclaimedBytes, layers } = data as ReclaimView;
    return `${formatSize(reclaimedBytes)} in ${counted(layers, "layer")}`;
  }
  if (name.startsWith("connection-")) {
    const { export: exportName, connection } = data as ConnectionEventView;
    return `${exportName}: ${connection.address}${connection.writable ? "" : ", read-only"}`;
  }
  if (name.startsWith("snapshot-")) {
    const { volume, name: snapshot } = data as SnapshotView;
    return `${volume}@${snapshot}`;
  }
  if (name.startsWith("export-")) {
    const { name: exportName, volume, snapshot } = data as ExportView;
    return `${exportName}: ${snapshot === null ? volume : `${volume}@${snapshot}`}`;
  }
  const { name: volume, state, reason, hydration, connections } = data as VolumeView;
  const parts = [state === "ok" || reason === null ? state : `${state}: ${reason}`, hydrationSummary(hydration)];
  return `${volume}: ${parts.join(", ")}, ${counted(connections, "connection")}`;
}
