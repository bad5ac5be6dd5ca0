import { decodeCursor, encodeCursor } from "./cursor.ts";

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

/** @returns the key that the page begins behind; "" for the first @throws UllageError `bad-cursor` */
export function placeOf(given: string | undefined): string {
  return given === undefined ? "" : decodeCursor(given);
}

/** @param found a page: the items behind the cursor, `limit` of them at most @returns the cursor of the next one */
export function nextCursor<T>(found: readonly T[], limit: number, keyOf: (item: T) => string): string | null {
  return found.length < limit ? null : encodeCursor(keyOf(found[found.length - 1]));
}
