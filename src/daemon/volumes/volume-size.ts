import { UllageError } from "../../base/errors.ts";
import { formatExactSize } from "../../base/units.ts";

export const sectorBytes = 512;
/** What a map in memory is still good for: 1 GiB of it. */
const maxBytes = 1024 ** 5;

/**
 * The size of a new volume: the image's, rounded up to whole sectors, or a larger one that was asked for.
 * @param imageBytes undefined: it starts empty
 * @throws UllageError `bad-size`, naming the nearest valid size; `too-large`
 */
export function volumeSize(imageBytes: number | undefined, wanted: number | undefined): number {
  const least = imageBytes === undefined ? sectorBytes : roundUp(imageBytes);
  if (least > maxBytes) {
    throw new UllageError("too-large", `an image of ${formatExactSize(least)} is more than a volume can have`, {
      hint: `the largest volume has ${formatExactSize(maxBytes)}`,
    });
  }
  if (wanted === undefined) {
    if (imageBytes === 0)
      throw new UllageError("bad-size", "0 bytes make no disk", { hint: "look at where the image comes from" });
    if (imageBytes !== undefined) return least;
    throw new UllageError("bad-size", "an empty volume needs a size", { hint: "give a size, or a source" });
  }
  const nearest = Math.min(Math.max(least, Math.round(wanted / sectorBytes) * sectorBytes), maxBytes);
  if (wanted === nearest) return wanted;
  const why =
    wanted < least
      ? `is less than ${least} bytes${imageBytes === undefined ? "" : ", which the image needs"}`
      : wanted > maxBytes
        ? "is more than a volume can have"
        : "is no multiple of 512";
  throw new UllageError("bad-size", `a size of ${wanted} bytes ${why}`, {
    hint: `the nearest valid size is ${nearest} (${formatExactSize(nearest)})`,
  });
}

function roundUp(bytes: number): number {
  return Math.ceil(bytes / sectorBytes) * sectorBytes;
}
