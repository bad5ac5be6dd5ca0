import { UllageError } from "../base/errors.ts";

/** A cursor of a list is the place behind which the next page begins: it stays good when what stood there has gone. */
export function encodeCursor(place: string): string {
  return Buffer.from(place).toString("base64url");
}

/** @throws UllageError `bad-cursor` */
export function decodeCursor(cursor: string): string {
  const place = Buffer.from(cursor, "base64url").toString();
  if (encodeCursor(place) !== cursor) throw badCursor(cursor);
  return place;
}

export function badCursor(cursor: string): UllageError {
  return new UllageError("bad-cursor", `'${cursor}' is no cursor of this list`, {
    hint: "begin without one, and go on with `next` of each page",
  });
}
