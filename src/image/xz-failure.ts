/** The library's numbers (xz-embedded, enum xz_ret), for people. */
const reasons: Record<string, string> = {
  "3": "needs too much memory: a dictionary has more than 64 MiB",
  "4": "needs too much memory: a dictionary has more than 64 MiB",
  "5": "is no xz stream",
  "6": "uses a check or a filter that can't be read (SHA-256, or BCJ)",
  "7": "has bytes that are not what they should be",
  "8": "ends too early",
};
const unsupported = new Set(["3", "4", "6"]);

/** What the decoder has thrown; `why` follows "it". */
export function xzFailure(error: unknown): { why: string; unsupported: boolean } {
  const code = /error code (\d+)/.exec(String(error))?.[1] ?? "";
  return { why: reasons[code] ?? String(error), unsupported: unsupported.has(code) };
}
