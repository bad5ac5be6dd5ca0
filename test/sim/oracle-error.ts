import { sectorBytes } from "./sim-inode.ts";

/** A sector shows a content that it must not have. */
export class OracleError extends Error {
  readonly sector: number;

  /** @param where whose sector it is, if not the volume's; what else there is to say */
  constructor(sector: number, seen: Buffer, allowed: Buffer[], where = "") {
    const list = allowed.map(describeContent).join(", ");
    super(
      `${where}sector ${sector} (byte ${sector * sectorBytes}, block ${Math.floor(sector / 8)}) shows ` +
        `${describeContent(seen)}; allowed: ${list}`,
    );
    this.name = "OracleError";
    this.sector = sector;
  }
}

function describeContent(content: Buffer): string {
  if (content.every((byte) => byte === 0)) return "zeros";
  const text = content.toString("latin1");
  const names = [...new Set(text.match(/(op|blob)[ \w]* sector \d+/g) ?? [])];
  if (names.length > 0) return names.length === 1 ? `<${names[0]}>` : `<mix of ${names.join(" and ")}>`;
  return content.subarray(0, 16).toString("hex");
}
