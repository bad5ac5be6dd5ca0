/** A part of a representation: bytes [start, end). */
export interface ByteRange {
  start: number;
  end: number;
}

/**
 * What a Range header asks for (RFC 9110, section 14.2).
 * @returns undefined: all of it, also for what is no range of bytes, or several, as the RFC lets a server choose;
 *   `unsatisfiable`: nothing of it is there
 */
export function parseRange(header: string | undefined, size: number): ByteRange | undefined | "unsatisfiable" {
  const [, first, last] = /^bytes=\s*(\d*)-(\d*)\s*$/i.exec(header ?? "") ?? [];
  if (first === undefined || (first === "" && last === "")) return undefined;
  if (first === "")
    return Number(last) === 0 || size === 0 ? "unsatisfiable" : { start: Math.max(0, size - Number(last)), end: size };
  if (last !== "" && Number(last) < Number(first)) return undefined;
  if (Number(first) >= size) return "unsatisfiable";
  return { start: Number(first), end: last === "" ? size : Math.min(size, Number(last) + 1) };
}

/** Whether a header like If-None-Match names an entity tag (weakly compared), or any. */
export function namesTag(header: string | undefined, tag: string): boolean {
  if (header === undefined) return false;
  return header.split(",").some((each) => ["*", tag].includes(each.trim().replace(/^W\//, "")));
}
