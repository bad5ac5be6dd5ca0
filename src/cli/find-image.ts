import { UllageError } from "../base/errors.ts";
import { shownSource } from "../base/without-secrets.ts";
import type { ImageView } from "../daemon/views.ts";
import type { ApiClient } from "./api-client.ts";
import { allPages } from "./client-command.ts";
import { absoluteSource } from "./parse.ts";

/** Enough of an id to be meant as one. */
const leastIdDigits = 4;

/** An image by its source or the beginning of its id. @throws UllageError `not-found`, `ambiguous` */
export async function findImage(daemon: ApiClient, given: string): Promise<ImageView> {
  const images = await allPages<ImageView>(daemon, "/v1/images", "images");
  const source = shownSource(absoluteSource(given));
  const bySource = images.filter((image) => image.source === source);
  const isId = given.length >= leastIdDigits && /^[0-9a-f]+$/.test(given);
  const found = bySource.length > 0 || !isId ? bySource : images.filter(({ id }) => id.startsWith(given));
  if (found.length === 1) return found[0];
  if (found.length === 0) {
    throw new UllageError("not-found", `there is no image '${given}'`, { hint: "`ullage image ls` lists them" });
  }
  throw new UllageError("ambiguous", `'${given}' is ${found.length} images`, {
    hint: `name one by its id: ${found.map(({ id }) => id.slice(0, 12)).join(", ")}`,
  });
}
