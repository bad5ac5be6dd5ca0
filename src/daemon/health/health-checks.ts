import type { MetadataStore } from "../../catalog/metadata-store.ts";
import type { DataProbe } from "../directory/data-probe.ts";
import type { EventLoopDelay } from "./event-loop-delay.ts";
import { type Finding, type Warning, warnOf } from "./health.ts";
import type { VolumeView } from "../views.ts";
import type { SharedBlob, VolumeCache } from "../sources/volume-sources.ts";

/** Timers that are late by so much in one case of a hundred: clients wait for each other. */
const lateMs = 100;

/** What is looked at. Nothing here waits or asks anybody: sources are judged by what their last request came to. */
export interface HealthParts {
  fileSystem: readonly Warning[];
  start: readonly Warning[];
  listeners: readonly Warning[];
  store: Pick<MetadataStore, "readOnlyReason">;
  cache: VolumeCache;
  probe: DataProbe;
  delay: EventLoopDelay;
  /** As far as is known without opening them. */
  volumes: readonly VolumeView[];
}

/** Everything that is not as it should be. */
export function findingsOf(parts: HealthParts): Finding[] {
  return [
    ...warnOf("start", parts.start),
    ...warnOf("fileSystem", parts.fileSystem),
    ...warnOf("listeners", parts.listeners),
    ...parts.probe.findings(),
    ...catalogFindings(parts.store),
    ...parts.volumes.flatMap(volumeFindings),
    ...parts.cache.opened().flatMap(sourceFindings),
    ...delayFindings(parts.delay),
  ];
}

function catalogFindings({ readOnlyReason }: HealthParts["store"]): Finding[] {
  if (readOnlyReason === undefined) return [];
  const message = `the catalog failed (${readOnlyReason}): nothing can be changed until the next start`;
  return [{ check: "catalog", status: "fail", code: "catalog-read-only", message }];
}

/** What a state of a volume means for health; those that are left out are well. */
const meaningOf: Partial<Record<VolumeView["state"], Pick<Finding, "check" | "status">>> = {
  poisoned: { check: "durability", status: "fail" },
  lostUnflushed: { check: "durability", status: "fail" },
  failed: { check: "volumes", status: "fail" },
  degraded: { check: "volumes", status: "warn" },
};

function volumeFindings({ name, state, reason }: VolumeView): Finding[] {
  const meaning = meaningOf[state];
  if (meaning === undefined) return [];
  return [{ ...meaning, code: `volume-${state}`, message: `volume '${name}' is ${state}: ${reason}` }];
}

/** A blob that is complete, and has the right bytes, needs its source no more. */
function sourceFindings({ sourceTrouble, readyBytes, size, check }: SharedBlob): Finding[] {
  const trouble = check?.trouble ?? (readyBytes === size ? undefined : sourceTrouble);
  if (trouble === undefined) return [];
  const { error, at } = trouble;
  return [{ check: "sources", status: "warn", code: error.code, message: `${error.message} (last at ${at})` }];
}

function delayFindings(delay: EventLoopDelay): Finding[] {
  const { p99Ms } = delay.lastMinute() ?? { p99Ms: 0 };
  if (p99Ms < lateMs) return [];
  const message = `one timer of a hundred ran ${Math.round(p99Ms)} ms late in the last minute: too little CPU, or a slow disk`;
  return [{ check: "eventLoop", status: "warn", code: "event-loop-late", message }];
}
