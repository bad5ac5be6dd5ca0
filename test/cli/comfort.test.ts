import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";
import { helpTopics } from "../../src/cli/help-topics.ts";
import { formatTable } from "../../src/cli/output.ts";
import { atEnd, temporaryDirectory } from "../daemon/support.ts";
import { requireTool } from "../support/tools.ts";
import { launchDaemon, run } from "./support.ts";

const timeout = 60_000;

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

void test("an unknown snapshot is answered with the names that are near, whatever the command", async (t) => {
  const daemon = await launchDaemon(t);
  await daemon.json(["volume", "create", "web1", "--size", "1M"]);
  await daemon.json(["volume", "create", "other", "--size", "1M"]);
  await daemon.json(["snapshot", "create", "other@mondat"]);
  for (const name of ["monday", "tuesday"]) await daemon.json(["snapshot", "create", `web1@${name}`]);
  for (const args of [
    ["snapshot", "rm", "web1@mondy"],
    ["snapshot", "diff", "web1@Monday1"],
    ["snapshot", "diff", "web1@tuesday", "web1@mond"],
    ["volume", "revert", "web1@modnay"],
    ["volume", "create", "web2", "--snapshot", "web1@mnoday"],
    ["volume", "export", "web1@mondya", "-"],
    ["export", "add", "web1@mondax", "--nbd", "boot"],
  ]) {
    const { code, stderr } = await daemon.cli(args);
    assert.equal(code, 1, stderr);
    assert.match(stderr, /^ullage: volume 'web1' has no snapshot '\w+'\n +did you mean 'monday'\?/, args.join(" "));
  }
  const { stderr } = await daemon.cli(["snapshot", "rm", "web1@christmas"]);
  assert.match(stderr, /has no snapshot/);
  assert.doesNotMatch(stderr, /did you mean/);
});

void test("names of snapshots are suggested to users of the API, and to nobody who only knows an export's name", async (t) => {
  if (!requireTool(t, "qemu-img", "curl")) return;
  const data = join(await temporaryDirectory(t), "data");
  const daemon = await launchDaemon(t, data, ["--api", `unix:${data}/api.sock`, "--api", "127.0.0.1:0"]);
  await daemon.json(["volume", "create", "web1", "--size", "1M"]);
  await daemon.json(["snapshot", "create", "web1@monday"]);
  const asked = promisify(execFile)("qemu-img", ["info", daemon.uri("web1@mondy")]);
  const nbd = await asked.catch((error: { stderr: string }) => error);
  assert.match(nbd.stderr, /has no snapshot 'mondy'/);
  assert.doesNotMatch(nbd.stderr, /monday/);
  const { secret } = await daemon.json<{ secret: string }>(["token", "create", "reader", "--scope", "read"]);
  const { listeners } = daemon.announced;
  const { address } = listeners.find((each) => each.protocol === "api" && each.address.startsWith("127."))!;
  const url = `http://${address}/v1/volumes/web1/snapshots/mondy`;
  const { stdout: stranger } = await promisify(execFile)("curl", ["-s", url]);
  assert.doesNotMatch(stranger, /monday/);
  const { stdout: reader } = await promisify(execFile)("curl", ["-s", "-H", `Authorization: Bearer ${secret}`, url]);
  assert.match(reader, /did you mean 'monday'\?/);
});

void test("help is there for every command and topic; what there is no help about is a usage error", async () => {
  const top = await run(["help"]);
  assert.equal(top.code, 0);
  for (const { name, summary } of helpTopics) {
    assert.ok(top.stdout.includes(summary), name);
    const page = await run(["help", name]);
    assert.deepEqual([page.code, page.stderr], [0, ""]);
    const widest = Math.max(...page.stdout.split("\n").map((line) => line.length));
    assert.ok(widest <= 130, `${name} has a line of ${widest} characters`);
  }
  assert.match((await run(["help", "volume", "create"])).stdout, /^Usage: ullage volume create/);
  const unknown = await run(["help", "durabilty"]);
  assert.deepEqual([unknown.code, unknown.stdout], [2, ""]);
  assert.match(unknown.stderr, /did you mean 'durability'\?/);
  assert.match((await run(["help", "volume", "craete"])).stderr, /did you mean 'create'\?/);
});

void test("a reader that leaves early disturbs neither a command nor a daemon", async (t) => {
  const ullage = join(import.meta.dirname, "../../bin/ullage");
  const execute = promisify(execFile);
  const piped = await execute("bash", ["-o", "pipefail", "-c", `${ullage} help config | head -n 1`], { timeout });
  assert.equal(piped.stderr, "");
  const directory = await temporaryDirectory(t);
  const api = join(directory, "api.sock");
  const args = ["serve", "--data", join(directory, "data"), "--api", `unix:${api}`, "--nbd", "127.0.0.1:0"];
  const daemon = spawn(ullage, [...args, "--log-level", "debug"], { stdio: ["ignore", "pipe", "pipe"] });
  const ended = new Promise<number | null>((resolve) => daemon.once("close", resolve));
  atEnd(t, async () => {
    daemon.kill("SIGKILL");
    await ended;
  });
  await new Promise((resolve) => daemon.stdout.once("data", resolve));
  daemon.stdout.destroy();
  daemon.stderr.destroy();
  for (const name of ["one", "two"]) {
    const made = await run(["volume", "create", name, "--size", "1M", "--api", `unix:${api}`]);
    assert.equal(made.code, 0, made.stderr);
  }
  daemon.kill("SIGTERM");
  assert.equal(await ended, 0, "a clean stop");
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
