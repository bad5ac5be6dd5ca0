/** Zeros are looked for in blocks of this size, which is what file systems and volumes can leave out. */
export const zeroBlockBytes = 4096;

const zeros = Buffer.alloc(zeroBlockBytes);

/** A run of bytes: where it begins, and how many they are. */
export interface Run {
  offset: number;
  length: number;
}

/**
 * The runs of blocks that hold anything but zeros; blocks are counted from `at` on, and the last one may be short.
 * @returns offsets in `bytes`
 */
export function dataRuns(bytes: Buffer, at: number, length: number): Run[] {
  const runs: Run[] = [];
  let open: Run | undefined;
  for (const end = at + length; at < end; at += zeroBlockBytes) {
    const size = Math.min(zeroBlockBytes, end - at);
    if (bytes.compare(zeros, 0, size, at, at + size) === 0) {
      open = undefined;
    } else if (open === undefined) {
      open = { offset: at, length: size };
      runs.push(open);
    } else {
      open.length += size;
    }
  }
  return runs;
}
