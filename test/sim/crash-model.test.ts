import { test } from "node:test";
import { runSeed } from "./crash-driver.ts";
import { profiles } from "./profiles.ts";

/*
 * The volume engine on a simulated disk: every seed is a world of its own (crash-driver.ts). ULLAGE_SEEDS sets how many
 * run, ULLAGE_SEED runs one (with ULLAGE_TRACE its failure tells all that happened); a seed means the same under each.
 */

const seeds = Number(process.env["ULLAGE_SEEDS"] ?? 4000);
const onlySeed = process.env["ULLAGE_SEED"];

for (const [index, profile] of profiles.entries()) {
  if (onlySeed !== undefined && Number(onlySeed) % profiles.length !== index) continue;
  void test(profile.name, { timeout: 600_000 }, async () => {
    if (onlySeed !== undefined) {
      await runSeed(Number(onlySeed), profile);
      return;
    }
    for (let seed = index; seed < seeds; seed += profiles.length) await runSeed(seed, profile);
  });
}
