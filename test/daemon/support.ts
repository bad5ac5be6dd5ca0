import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TestContext } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Ullage, type UllageOptions } from "../../src/daemon/ullage.ts";

const stacks = new WeakMap<TestContext, (() => Promise<unknown>)[]>();

/** Runs `work` when the test has ended, the last one first: what uses a directory ends before the directory goes. */
export function atEnd(t: TestContext, work: () => Promise<unknown>): void {
  let stack = stacks.get(t);
  if (stack === undefined) {
    const fresh: (() => Promise<unknown>)[] = [];
    stack = fresh;
    stacks.set(t, fresh);
    t.after(async () => {
      for (const step of fresh.toReversed()) await step();
    });
  }
  stack.push(work);
}

export async function temporaryDirectory(t: TestContext): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), "ullage-test-"));
  atEnd(t, () => rm(directory, { recursive: true, force: true }));
  return directory;
}

/** Opened on a directory of its own, unless `dataDir` is given; closed when the test ends. */
export async function openUllage(t: TestContext, options: Partial<UllageOptions> = {}): Promise<Ullage> {
  const dataDir = options.dataDir ?? join(await temporaryDirectory(t), "data");
  const ullage = await Ullage.open({ ...options, dataDir });
  atEnd(t, () => ullage.close());
  return ullage;
}

/** Waits until a volume needs its source no more. */
export async function untilDetached(ullage: Ullage, name: string): Promise<void> {
  for (let n = 0; ; n++) {
    const { hydration } = await ullage.showVolume(name);
    if (hydration.state === "detached") return;
    assert.ok(n < 3000, `it does not get detached: ${JSON.stringify(hydration)}`);
    await sleep(20);
  }
}
