import { test } from "node:test";
import { runSeed } from "../sim/crash-driver.ts";
import { profiles } from "../sim/profiles.ts";

/** An hour of new seeds for the crash model, or ULLAGE_SOAK_SECONDS. A failure prints the command that replays it. */
const seconds = Number(process.env["ULLAGE_SOAK_SECONDS"] ?? 3600);

void test("the crash model finds nothing in new seeds", { timeout: (seconds + 600) * 1000 }, async (t) => {
  // Each run looks where no run before it has looked.
  const first = Math.floor(Date.now() / 1000) * 1000;
  const end = performance.now() + seconds * 1000;
  let seed = first;
  for (; performance.now() < end; seed++) await runSeed(seed, profiles[seed % profiles.length]);
  t.diagnostic(`${seed - first} seeds from ${first}`);
});
