/**
 * `npm test`, `npm run test:sources`, `npm run test:vm`, `npm run test:soak`: installs what the tests need when it may (root and apt-get), else says
 * what is missing, then hands over to node:test. Files or folders can be named to run only those:
 * `npm test -- test/nbd`.
 */
import { spawn, spawnSync } from "node:child_process";
import { globSync, statSync } from "node:fs";
import { commandExists, describe, missingTools, packagesFor, toolsFor } from "./support/tools.ts";

interface Group {
  /** What to run: globs below the checkout. */
  files: readonly string[];
  without: readonly string[];
  tools: "tests" | "vm" | "sources";
  /** For one test, ms; a test can ask for less. */
  testTimeoutMs: number;
  /** For the whole run, ms. */
  totalMs: number;
}

const minute = 60_000;
const groups: Record<"tests" | "sources" | "vm" | "soak", Group> = {
  tests: {
    files: ["test/**/*.test.ts"],
    without: ["test/vm/**", "test/sources/**", "test/soak/**"],
    tools: "tests",
    testTimeoutMs: 3 * minute,
    totalMs: 19 * minute,
  },
  sources: {
    files: ["test/sources/**/*.test.ts"],
    without: [],
    tools: "sources",
    testTimeoutMs: 5 * minute,
    totalMs: 12 * minute,
  },
  vm: { files: ["test/vm/**/*.test.ts"], without: [], tools: "vm", testTimeoutMs: 10 * minute, totalMs: 17 * minute },
  soak: {
    files: ["test/soak/**/*.test.ts"],
    without: [],
    tools: "tests",
    testTimeoutMs: 120 * minute,
    totalMs: 240 * minute,
  },
};

const testFilesAtOnce = 2;
const installTimeoutMs = 8 * minute;

process.chdir(new URL("..", import.meta.url).pathname);
process.exitCode = await main(process.argv.slice(2));

async function main(args: readonly string[]): Promise<number> {
  const [first, ...rest] = args;
  const groupNamed = first === "vm" || first === "soak" || first === "sources";
  const group = groups[groupNamed ? first : "tests"];
  const named = groupNamed ? rest : args;
  const files = named.length === 0 ? filesOf(group.files, group.without) : named.flatMap(expand);
  if (files.length === 0) {
    console.error(`no test files: ${named.length === 0 ? group.files.join(" ") : named.join(" ")} matches nothing`);
    return 1;
  }
  provideTools(group.tools);
  return runTests(files, group);
}

function filesOf(patterns: readonly string[], without: readonly string[]): string[] {
  return globSync(patterns, { exclude: without }).sort();
}

function expand(path: string): string[] {
  return statSync(path).isDirectory() ? filesOf([`${path}/**/*.test.ts`], []) : [path];
}

/** Installs the missing tools, or says loudly which tests will be skipped for want of them. Never fails by itself. */
function provideTools(of: Group["tools"]): void {
  let missing = missingTools(...toolsFor(of));
  const packages = packagesFor(missing);
  if (packages.length > 0 && process.getuid?.() === 0 && commandExists("apt-get")) {
    console.log(`installing what the tests need: ${packages.join(" ")}`);
    aptGet("update");
    aptGet("install", "--yes", "--no-install-recommends", ...packages);
    missing = missingTools(...missing);
  }
  for (const name of missing) console.error(`MISSING ${describe(name)}: tests that need it will be skipped`);
}

function aptGet(...args: string[]): void {
  const result = spawnSync("apt-get", ["--quiet=2", "--option", "DPkg::Lock::Timeout=120", ...args], {
    stdio: ["ignore", "ignore", "inherit"],
    timeout: installTimeoutMs,
    // Offline: the services in these packages (prometheus, nginx) are not started.
    env: { ...process.env, DEBIAN_FRONTEND: "noninteractive", SYSTEMD_OFFLINE: "1" },
  });
  if (result.status !== 0)
    console.error(`apt-get ${args[0]} failed (${result.error?.message ?? `exit ${result.status}`})`);
}

/** Runs node:test on the files; resolves to the exit code. At `totalMs` the run is ended and counts as failed. */
async function runTests(files: readonly string[], group: Group): Promise<number> {
  const child = spawn(
    process.execPath,
    [
      "--test",
      `--test-concurrency=${testFilesAtOnce}`,
      `--test-timeout=${group.testTimeoutMs}`,
      "--test-reporter=./test/support/skip-reporter.ts",
      "--test-reporter-destination=stdout",
      ...files,
    ],
    { stdio: ["ignore", "inherit", "inherit"] },
  );
  const forward = (signal: NodeJS.Signals): void => void child.kill(signal);
  process.on("SIGINT", forward).on("SIGTERM", forward);
  const deadline = setTimeout(() => {
    console.error(`the tests did not end within ${group.totalMs / minute} minutes: stopping them`);
    child.kill("SIGTERM");
    setTimeout(() => child.kill("SIGKILL"), 10_000).unref();
  }, group.totalMs);
  const code = await new Promise<number>((resolve) => child.on("close", (exit) => resolve(exit ?? 1)));
  clearTimeout(deadline);
  return code;
}
