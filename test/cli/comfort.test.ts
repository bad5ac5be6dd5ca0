import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { formatTable } from "../../src/cli/output.ts";
import { temporaryDirectory } from "../daemon/support.ts";
import { launchDaemon, run } from "./support.ts";

void test("a command or an option that there is not is a usage error, with what was probably meant", async () => {
  for (const [args, meant] of [
    [["volum", "ls"], "volume"],
    [["volume", "sow", "web1"], "show"],
    [["volume", "ls", "--jsn"], "--json"],
    [["config", "chek", "x"], "check"],
    [["bench", "--quik"], "--quick"],
    [["serve", "--dat", "x"], "--data"],
    [["token", "creat"], "create"],
  ] as const) {
    const { code, stdout, stderr } = await run([...args]);
    assert.equal(code, 2, args.join(" "));
    assert.equal(stdout, "");
    assert.match(stderr, /^ullage: unknown (command|option) /, args.join(" "));
    assert.ok(stderr.includes(`(Did you mean ${meant}?)`), stderr);
  }
});

void test("used wrongly is exit 2, failed is exit 1, and both speak on stderr only", async (t) => {
  const nowhere = ["--api", `unix:${join(await temporaryDirectory(t), "none.sock")}`];
  for (const [args, code] of [
    [[], 2],
    [["volume"], 2],
    [["volume", "show"], 2],
    [["volume", "ls", "extra"], 2],
    [["volume", "create", "v", "--size", "many"], 2],
    [["volume", "create", "v", ...nowhere], 2],
    [["serve", "--tls", "perhaps"], 2],
    [["volume", "ls", ...nowhere], 1],
    [["check", "/no/such/directory"], 1],
    [["--version"], 0],
    [["volume", "ls", "--help"], 0],
  ] as const) {
    const result = await run([...args]);
    assert.equal(result.code, code, args.join(" "));
    assert.equal(result.stdout === "", code !== 0, args.join(" "));
    assert.equal(result.stderr === "", code === 0, args.join(" "));
  }
});

void test("an unknown volume is answered with the names that are near, whatever the command", async (t) => {
  const daemon = await launchDaemon(t);
  for (const name of ["web1", "web2", "mail"]) await daemon.json(["volume", "create", name, "--size", "1M"]);
  for (const args of [
    ["volume", "show", "wbe1"],
    ["volume", "rm", "web11"],
    ["volume", "map", "Web1"],
    ["volume", "hydrate", "we1"],
    ["attach", "web1x"],
  ]) {
    const { code, stderr } = await daemon.cli(args);
    assert.equal(code, 1);
    assert.match(stderr, /^ullage: there is no volume '\w+'\n +did you mean '.*web1'.*\?/, args.join(" "));
  }
  const { stderr } = await daemon.cli(["volume", "show", "printer"]);
  assert.doesNotMatch(stderr, /did you mean/);
});

void test("a table fits the terminal: elastic columns give way, the widest first, then the ends of lines", () => {
  const rows = [{ name: "a".repeat(20), state: "ok", source: "https://example.org/images/debian.raw" }];
  const columns = [
    { heading: "NAME", value: ({ name }: (typeof rows)[0]) => name, elastic: true },
    { heading: "STATE", value: ({ state }: (typeof rows)[0]) => state },
    { heading: "SOURCE", value: ({ source }: (typeof rows)[0]) => source, elastic: true },
  ];
  const widest = (width: number): number =>
    Math.max(
      ...formatTable(rows, columns, width)
        .split("\n")
        .map((line) => line.length),
    );
  assert.equal(widest(Infinity), 66);
  for (const width of [65, 50, 30, 20, 12]) assert.ok(widest(width) <= width, String(width));
  assert.equal(
    formatTable(rows, columns, 60),
    `NAME                  STATE  SOURCE\n${"a".repeat(20)}  ok     https://example.org/images/deb…`,
  );
  assert.equal(formatTable(rows, columns, 40).split("\n")[1], `${"a".repeat(14)}…  ok     https://example…`);
  assert.match(formatTable(rows, columns, 20), /…$/);
});
