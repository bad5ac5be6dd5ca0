/**
 * Runs the benchmarks and writes what they found. All figures are relative to peers measured in the same run: nothing
 * else on the machine should run meanwhile.
 */
import { rmSync } from "node:fs";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { UllageError } from "../src/base/errors.ts";
import type { BenchOptions } from "../src/cli/commands/bench.ts";
import type { Benchmark, Context } from "./context.ts";
import { describeMachine } from "./machine.ts";
import { killChildren } from "./process.ts";
import { type Table, targetsToMarkdown, toMarkdown } from "./report.ts";
import { cold } from "./tables/cold.ts";
import { control } from "./tables/control.ts";
import { hydration } from "./tables/hydration.ts";
import { lazy } from "./tables/lazy.ts";
import { scale } from "./tables/scale.ts";
import { snapshots } from "./tables/snapshots.ts";
import { sources } from "./tables/sources.ts";
import { steady } from "./tables/steady.ts";

const benchmarks: readonly Benchmark[] = [steady, cold, lazy, hydration, sources, scale, snapshots, control];
export const tableNames = benchmarks.map(({ name }) => name);

export async function runBenchmarks(options: BenchOptions): Promise<void> {
  const unknown = (options.only ?? []).filter((name) => !tableNames.includes(name));
  if (unknown.length > 0) {
    throw new UllageError("usage", `no table '${unknown.join("', '")}'`, {
      hint: `the tables are ${tableNames.join(", ")}`,
    });
  }
  const out = new URL("out/", import.meta.url).pathname;
  await mkdir(out, { recursive: true });
  const machine = await describeMachine(out);
  const tables: Table[] = [];
  for (const benchmark of benchmarks) {
    if (options.only !== undefined && !options.only.includes(benchmark.name)) continue;
    const folder = await mkdtemp(join(out, `${benchmark.name}-`));
    const { rounds, seconds, quick, servers } = options;
    const context: Context = { folder, rounds, seconds, quick, servers, log: (line) => console.error(line) };
    const interrupted = (): void => {
      killChildren();
      rmSync(folder, { recursive: true, force: true });
      process.exit(130);
    };
    process.once("SIGINT", interrupted).once("SIGTERM", interrupted);
    try {
      tables.push(...(await benchmark.run(context)));
    } finally {
      process.off("SIGINT", interrupted).off("SIGTERM", interrupted);
      await rm(folder, { recursive: true, force: true });
    }
  }
  const text = document(machine, options, tables);
  if (options.output === undefined) process.stdout.write(text);
  else await writeFile(options.output, text);
}

function document(machine: readonly string[], options: BenchOptions, tables: readonly Table[]): string {
  // Small files and few records can neither keep a promise nor break it.
  const targets = options.quick ? [] : tables.flatMap((table) => table.targets);
  const warning = options.quick
    ? ["**A quick run on small files: it shows that everything runs, its figures mean nothing.**", ""]
    : [];
  const reading = [
    "`spread` is how far the rounds lay apart (most less least, of the median); `others' CPUs` is how much of the machine neither the",
    "server nor fio used meanwhile. Where either is large, the row says more about the machine than about the server.",
    "",
  ];
  const promised = targets.length === 0 ? [] : ["## What the project promises", "", targetsToMarkdown(targets)];
  const head = [
    "# Benchmark results",
    "",
    `Made by \`npm run bench\` on ${new Date().toISOString().slice(0, 10)}.`,
    "",
  ];
  return [...head, ...warning, ...machine, "", ...reading, ...promised, ...tables.map(toMarkdown)].join("\n");
}
