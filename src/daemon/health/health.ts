/** Something that an operator should know about; shown at start and in /v1/health until it is mended. */
export interface Warning {
  /** stable, for scripts */
  code: string;
  message: string;
}

/**
 * - data: the data directory takes writes, and makes them durable
 * - durability: no volume is poisoned, none had to refuse writers because acknowledged writes were lost
 * - volumes: every volume can be opened and is filled
 * - catalog: names and states can be changed
 * - space: more is free than the reserve that hydration leaves alone
 * - fileSystem: a flush means what it says where the data directory lies (durability rule 33)
 * - start: nothing was found at start that somebody should look at
 * - listeners: nobody can reach a listener who should not
 * - sources: the last request to every source that is still needed was answered
 * - eventLoop: clients do not wait for each other
 */
export const checkNames = [
  "data",
  "durability",
  "volumes",
  "catalog",
  "space",
  "fileSystem",
  "start",
  "listeners",
  "sources",
  "eventLoop",
] as const;
export type CheckName = (typeof checkNames)[number];

/** warn: somebody should look at it; fail: something that users rely on does not work */
export type HealthStatus = "ok" | "warn" | "fail";

/** One thing that health looks at. */
export interface HealthCheck {
  name: CheckName;
  status: HealthStatus;
  /** null: all is well */
  message: string | null;
}

/** What a check found to be wrong. */
export interface Finding extends Warning {
  check: CheckName;
  status: "warn" | "fail";
}

/** A check's message names so many findings; the rest is counted. */
const findingsInMessage = 3;

/** Warnings of one check, as findings. */
export function warnOf(check: CheckName, warnings: readonly Warning[]): Finding[] {
  return warnings.map((warning) => ({ check, status: "warn", ...warning }));
}

/** Every check, with the worst of what it found. */
export function checksOf(findings: readonly Finding[]): HealthCheck[] {
  return checkNames.map((name) => {
    const found = findings.filter(({ check }) => check === name);
    const shown = found.slice(0, findingsInMessage).map(({ message }) => message);
    if (found.length > shown.length) shown.push(`and ${found.length - shown.length} more`);
    return { name, status: worstOf(found), message: shown.length === 0 ? null : shown.join("; ") };
  });
}

export function worstOf(those: readonly { status: HealthStatus }[]): HealthStatus {
  if (those.some(({ status }) => status === "fail")) return "fail";
  return those.some(({ status }) => status === "warn") ? "warn" : "ok";
}
