import assert from "node:assert/strict";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import type { HydrationView, VolumeView } from "../../src/daemon/views.ts";
import { temporaryDirectory } from "../daemon/support.ts";
import { launchDaemon, run } from "./support.ts";

const commands = [
  ["run"],
  ["serve"],
  ...["create", "ls", "show", "rm", "hydrate", "pause", "resume", "map", "set", "reopen"].map((verb) => [
    "volume",
    verb,
  ]),
  ...["create", "ls", "rm"].map((verb) => ["token", verb]),
  ["check"],
  ["repair"],
];

void test("every command has help with an example, and --json", async () => {
  for (const command of commands) {
    const { code, stdout } = await run([...command, "--help"]);
    assert.equal(code, 0, command.join(" "));
    assert.match(stdout, /Example:\n {2}\$ ullage /, command.join(" "));
    assert.match(stdout, /--json/, command.join(" "));
  }
});

void test("wrong use ends with 2 and says what was meant", async () => {
  for (const [args, said] of [
    [["sreve"], /ullage: unknown command 'sreve'\n\(Did you mean serve\?\)/],
    [["serve", "--dta", "x"], /unknown option '--dta'\n\(Did you mean --data\?\)/],
    [["volume", "show"], /missing required argument 'name'/],
    [
      ["volume", "create", "x"],
      /a volume needs an image or a size\n.*give --from SOURCE, --snapshot VOL@SNAP, --clone VOL or --size S/,
    ],
    [["volume", "create", "x", "--size", "10X"], /'10X' is not a size.*1\.5G/],
    [["volume", "set", "x", "sink=always"], /there is no setting 'sink', only hydrate, sync/],
    [["volume", "set", "x", "sync=never"], /sync can be normal or always, not 'never'/],
    [["volume", "ls", "--api", "nowhere"], /'nowhere' is not where an API can be\n.*HOST:PORT/],
    [["serve", "--nbd", "nowhere"], /nowhere.*is not HOST:PORT/],
  ] as [string[], RegExp][]) {
    const { code, stdout, stderr } = await run(args);
    assert.equal(code, 2, args.join(" "));
    assert.match(stderr, said);
    assert.match(stderr, /^ullage: /);
    assert.equal(stdout, "");
  }
});

void test("without a daemon the message says how to get one", async (t) => {
  const cwd = await temporaryDirectory(t);
  const missing = await run(["volume", "ls"], { cwd });
  assert.equal(missing.code, 1);
  assert.match(
    missing.stderr,
    /^ullage: no daemon found: neither .*ullage-data\/api\.sock.*\n +start one with `ullage serve`/,
  );
  const elsewhere = await run(["volume", "ls", "--api", `unix:${cwd}/api.sock`], { cwd });
  assert.equal(elsewhere.code, 1);
  assert.match(elsewhere.stderr, /no daemon listens on unix:.*api\.sock/);
});

void test("volumes are made, listed, shown, set, steered, mapped and removed", async (t) => {
  const daemon = await launchDaemon(t);
  const image = join(await temporaryDirectory(t), "image.raw");
  await writeFile(image, Buffer.alloc(1_000_000, "image"));

  assert.match((await daemon.cli(["volume", "ls"])).stdout, /there are no volumes yet/);
  const made = await daemon.cli(["volume", "create", "web1", "--from", image, "--size", "4M", "--set", "sync=always"]);
  assert.deepEqual([made.code, made.stdout], [0, "web1 is ready: 4M, NBD export 'web1'\n"]);
  await daemon.json(["volume", "create", "empty", "--size", "1G"]);

  const waited = await daemon.json<HydrationView>(["volume", "hydrate", "web1", "--wait", "--priority", "7"]);
  assert.deepEqual([waited.state, waited.readyBytes, waited.priority], ["detached", 1_000_000, 7]);
  const shown = await daemon.json<VolumeView>(["volume", "show", "web1"]);
  assert.equal(shown.source, image);
  assert.deepEqual(shown.settings, {
    hydrate: "auto",
    sync: "always",
    remoteAfterPowerLoss: "refuse",
    cache: "shared",
  });

  const listed = (await daemon.cli(["volume", "ls"])).stdout.trimEnd().split("\n");
  assert.match(listed[0], /^NAME +SIZE +STATE +WRITTEN +FETCHED +HYDRATION +SOURCE$/);
  assert.match(listed[1], /^empty +1G +ok .* none +-$/);
  assert.match(listed[2], /^web1 +4M +ok .* detached +\//);

  const map = await daemon.json<{ runs: { offset: number; length: number; kind: string }[] }>([
    "volume",
    "map",
    "web1",
  ]);
  assert.deepEqual(
    map.runs.map(({ offset, length, kind }) => [offset, length, kind]),
    [
      [0, 1_000_000, "local"],
      [1_000_000, 4 * 2 ** 20 - 1_000_000, "zero"],
    ],
  );

  const changed = await daemon.json<VolumeView>(["volume", "set", "web1", "sync=normal", "hydrate=off"]);
  assert.deepEqual(changed.settings, {
    hydrate: "off",
    sync: "normal",
    remoteAfterPowerLoss: "refuse",
    cache: "shared",
  });
  const nothing = await daemon.cli(["volume", "hydrate", "empty"]);
  assert.equal(nothing.code, 1);
  assert.match(nothing.stderr, /'empty' was made empty: there is nothing to fetch/);

  assert.equal((await daemon.cli(["volume", "rm", "web1"])).stdout, "web1 is gone\n");
  const gone = await daemon.cli(["volume", "show", "web1"]);
  assert.equal(gone.code, 1);
  assert.match(gone.stderr, /^ullage: there is no volume 'web1'\n/);
});

void test("relative sources mean the directory of the command, and a missing one is said to be missing", async (t) => {
  const daemon = await launchDaemon(t);
  const cwd = await temporaryDirectory(t);
  await mkdir(join(cwd, "images"));
  await writeFile(join(cwd, "images", "a.raw"), Buffer.alloc(4096, 1));
  const env = { ULLAGE_API: `unix:${daemon.dataDir}/api.sock` };
  const made = await run(["volume", "create", "a", "--from", "images/a.raw", "--json"], { cwd, env });
  assert.equal((JSON.parse(made.stdout) as VolumeView).source, join(cwd, "images", "a.raw"));
  const missing = await run(["volume", "create", "b", "--from", "b.raw"], { cwd, env });
  assert.equal(missing.code, 1);
  assert.match(missing.stderr, new RegExp(`^ullage: ${join(cwd, "b.raw")} does not exist`));
});

void test("sizes that are not possible are refused, naming the nearest one that is", async (t) => {
  const daemon = await launchDaemon(t);
  const image = join(await temporaryDirectory(t), "image.raw");
  await writeFile(image, Buffer.alloc(1000, "x"));
  const rounded = await daemon.json<VolumeView>(["volume", "create", "a", "--from", image]);
  assert.equal(rounded.size, 1024);
  for (const [size, nearest] of [
    ["512", /less than 1024 bytes.*\n.*nearest valid size is 1024 \(1k\)/],
    ["1500", /no multiple of 512\n.*nearest valid size is 1536 \(1536\)/],
  ] as [string, RegExp][]) {
    const { code, stderr } = await daemon.cli(["volume", "create", "b", "--from", image, "--size", size]);
    assert.equal(code, 1);
    assert.match(stderr, nearest);
  }
});
