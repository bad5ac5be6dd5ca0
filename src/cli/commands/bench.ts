import { existsSync } from "node:fs";
import { InvalidArgumentError, type Command } from "commander";
import { UllageError } from "../../base/errors.ts";

interface Options {
  peers?: boolean;
  quick?: boolean;
  only?: string[];
  servers?: string[];
  rounds?: number;
  seconds?: number;
  output?: string;
}

/** What the benchmarks take. */
export interface BenchOptions {
  /** Names of tables; all when absent. */
  only?: readonly string[];
  rounds: number;
  /** Of one fio job. */
  seconds: number;
  quick: boolean;
  /** Servers by the beginning of their name; all when absent. */
  servers?: readonly string[];
  /** Where to write the Markdown; standard output when absent. */
  output?: string;
}

/** The benchmarks live in the checkout's bench/ and are no part of the installed package. */
const main = new URL("../../../bench/main.ts", import.meta.url);

interface Benchmarks {
  runBenchmarks: (options: BenchOptions) => Promise<void>;
}

export function addBenchCommand(program: Command): void {
  program
    .command("bench")
    .description("measure this Ullage, in a checkout; with --peers beside nbdkit and qemu-nbd")
    .option("--peers", "beside the peers installed on this machine")
    .option("--only <table...>", "steady, cold, lazy, hydration, sources, scale, snapshots or control")
    .option("--servers <name...>", "only servers whose names begin like this, e.g. Ullage nbdkit")
    .option("--rounds <n>", "rounds of which the median counts; default 3", positive)
    .option("--seconds <n>", "length of one measurement; default 3", positive)
    .option("--quick", "one short round on small files: shows that it runs, its figures mean nothing")
    .option("--output <file>", "write the tables there instead of to standard output")
    .addHelpText(
      "after",
      "\nExample:\n  $ ullage bench --peers --only steady\n\nDebian packages that it needs: curl, fio, fuse3, libnbd-bin, nbdkit, qemu-utils, qemu-block-extra,\nqemu-system-common.",
    )
    .action(async (options: Options) => {
      if (!existsSync(main)) {
        throw new UllageError("no-benchmarks", "the benchmarks are not part of the installed package", {
          hint: "run `npm run bench` in a checkout of Ullage",
        });
      }
      // By a name that the compiler does not follow: what is built for the package ends at src/.
      const { runBenchmarks } = (await import(main.href)) as Benchmarks;
      const servers = options.servers ?? (options.peers === true ? undefined : ["Ullage"]);
      await runBenchmarks({
        rounds: options.rounds ?? (options.quick === true ? 1 : 3),
        seconds: options.seconds ?? (options.quick === true ? 1 : 3),
        quick: options.quick === true,
        ...(options.only && { only: options.only }),
        ...(servers && { servers }),
        ...(options.output !== undefined && { output: options.output }),
      });
    });
}

function positive(text: string): number {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 1) throw new InvalidArgumentError("give a whole number above 0");
  return value;
}
