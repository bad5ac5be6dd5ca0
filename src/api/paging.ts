import { UllageError } from "../base/errors.ts";

/** In the query of lists whose order is that of a key: names, ids. */
export const cursor = { type: "string", description: "`next` of the page before" } as const;

/** The query of a list. @param max items of a page */
export function page(max: number, more: Record<string, object>): object {
  return {
    type: "object",
    additionalProperties: false,
    properties: { ...more, limit: { type: "integer", minimum: 1, maximum: max, default: Math.min(max, 1000) } },
  };
}

/** @returns the cursor of the page behind a key */
export function encodeCursor(key: string): string {
  return Buffer.from(key).toString("base64url");
}

/** @returns the key that the page begins behind; "" for the first @throws UllageError `bad-cursor` */
export function decodeCursor(given: string | undefined): string {
  if (given === undefined) return "";
  const key = Buffer.from(given, "base64url").toString();
  if (encodeCursor(key) === given) return key;
  throw new UllageError("bad-cursor", `'${given}' is no cursor of this API`);
}

/** A page, and where the next one begins. @param found the items behind the cursor, `limit` of them at most */
export function nextCursor<T>(found: readonly T[], limit: number, keyOf: (item: T) => string): string | null {
  return found.length < limit ? null : encodeCursor(keyOf(found[found.length - 1]));
}
