/**
 * Upper bounds of the buckets, in seconds, half a decade each: from a read that the page cache answers to a source that is
 * tried again and again. The last bucket, without a bound, comes on top.
 */
export const latencyBounds: readonly number[] = [
  0.00001, 0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30,
];

const boundsMs = Float64Array.from(latencyBounds, (seconds) => seconds * 1000);

/** How long operations took, in fixed buckets: to observe allocates nothing. Counts are exact up to 2^53. */
export class LatencyHistogram {
  /** Per bucket, not cumulated; one more than `latencyBounds`. */
  readonly counts = new Float64Array(boundsMs.length + 1);
  /** Of all that was observed. */
  count = 0;
  sumMs = 0;

  /** @param times so many operations took `ms` each */
  observe(ms: number, times = 1): void {
    let bucket = 0;
    while (bucket < boundsMs.length && ms > boundsMs[bucket]) bucket++;
    this.counts[bucket] += times;
    this.count += times;
    this.sumMs += ms * times;
  }
}
