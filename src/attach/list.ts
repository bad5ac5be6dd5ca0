import { readdirSync } from "node:fs";
import { inspect, viewOf } from "./inspection.ts";
import { attachRoot, Place } from "./place.ts";
import type { AttachmentView } from "./state.ts";

/** What is attached to this host by this user, by name. */
export function listAttachments(): AttachmentView[] {
  const root = attachRoot();
  return readdirSync(root)
    .sort()
    .flatMap((entry) => {
      const place = Place.at(root, entry);
      return viewOf(place, inspect(place)) ?? [];
    });
}
