import { type CacheLimits, defaultLimits } from "../blob/cache-space.ts";

/** @param options.cacheCapacity bytes @param options.cacheReserve percent */
export function cacheLimitsOf(options: { cacheCapacity?: number; cacheReserve?: number }): CacheLimits {
  const { cacheCapacity = defaultLimits.capacityBytes, cacheReserve } = options;
  return {
    capacityBytes: cacheCapacity,
    reserve: cacheReserve === undefined ? defaultLimits.reserve : cacheReserve / 100,
  };
}
