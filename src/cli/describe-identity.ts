import type { BlobView } from "../daemon/views.ts";

/** By what an image is pinned, and whether its bytes were compared with that, for people. */
export function describeIdentity({
  pinned,
  identity,
  verified,
}: Pick<BlobView, "pinned" | "identity" | "verified">): string {
  if (!pinned) return `nothing that is sure (${identity ?? "no validator"})`;
  const compared = verified === null ? "" : verified ? ", verified" : ", not compared with it yet";
  return `${identity ?? "-"}${compared}`;
}
