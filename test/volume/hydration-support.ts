import type { TestContext } from "node:test";
import type { Blob } from "../../src/blob/blob.ts";
import { Hydration, type HydrationOptions, type HydrationStatus } from "../../src/volume/hydration/hydration.ts";
import type { HydrationTarget } from "../../src/volume/hydration/hydration-scan.ts";
import { HydrationSlots } from "../../src/volume/hydration/hydration-slots.ts";
import { ManualClock, atEnd } from "../blob/support.ts";

/** A volume of which hydration sees what it may see: the ranges of a blob that its map needs. */
export class FakeVolume implements HydrationTarget {
  readonly id: string;
  readonly #blobs: Blob[];
  needed: { offset: number; length: number }[];
  /** What happened, in order. */
  readonly events: string[] = [];
  onFlush: () => Promise<void> | void = () => undefined;

  constructor(blobs: Blob[], needed = blobs.map((blob) => ({ offset: 0, length: blob.size })), id = "e".repeat(32)) {
    this.#blobs = blobs;
    this.needed = needed;
    this.id = id;
  }

  blobs(): Blob[] {
    return this.#blobs;
  }

  neededRun(_blob: Blob, from: number): { offset: number; length: number } | undefined {
    for (const { offset, length } of this.needed) {
      if (offset + length <= from) continue;
      const start = Math.max(offset, from);
      return { offset: start, length: offset + length - start };
    }
    return undefined;
  }

  async flush(): Promise<void> {
    this.events.push("flush");
    await this.onFlush();
  }
}

/** Hydration of a volume, on a clock of its own. */
export async function openHydration(
  t: TestContext,
  volume: HydrationTarget,
  options: Partial<HydrationOptions> = {},
): Promise<{ hydration: Hydration; seen: HydrationStatus[]; clock: ManualClock; log: string[] }> {
  const clock = new ManualClock();
  const log: string[] = [];
  const hydration = await Hydration.open(volume, {
    clock,
    slots: new HydrationSlots(),
    space: () => Promise.resolve({ free: 100, total: 100, room: Infinity }),
    log: (_level, message) => log.push(message),
    ...options,
  });
  const seen: HydrationStatus[] = [];
  hydration.onChange((status) => seen.push(status));
  atEnd(t, () => hydration.close());
  return { hydration, seen, clock, log };
}

/** The states it went through. */
export const states = (seen: HydrationStatus[]): string[] =>
  seen.map(({ state }) => state).filter((state, index, all) => state !== all[index - 1]);

/** Lets everything happen that needs no clock. */
export const settle = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 30));
