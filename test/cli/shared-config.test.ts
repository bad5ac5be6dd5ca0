import assert from "node:assert/strict";
import { existsSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { pattern } from "../backend/support.ts";
import type { Announced } from "../blob-manager/support.ts";
import { temporaryDirectory } from "../daemon/support.ts";
import { startHttpSource } from "../support/http-source.ts";
import { launch, launchDaemon, run } from "./support.ts";

void test("run, blobd and serve take what concerns sources from one configuration file, and leave the rest to serve", async (t) => {
  const directory = await temporaryDirectory(t);
  const content = pattern(1024 * 1024);
  await using source = await startHttpSource({ content, credentials: "user:pass-word" });
  const keys = join(directory, "keys");
  writeFileSync(keys, "username = user\npassword = pass-word\n");
  const config = join(directory, "ullage.toml");
  writeFileSync(
    config,
    `data = "cache"
api = "unix:${directory}/never.sock"
nbd = "unix:${directory}/never-nbd.sock"
socketMode = "0660"
[[sources.match]]
prefix = "${new URL("/", source.url).href}"
credentials = "file:${keys}"
`,
  );
  const disk = await launch<{ volume: { size: number } }>(t, ["run", source.url, "--config", config]);
  assert.equal(disk.announced.volume.size, content.length);
  await disk.stop();
  const blobd = await launch<Announced>(t, ["blobd", "--config", config]);
  assert.equal(blobd.announced.dataDirectory, join(directory, "cache"));
  assert.equal(statSync(blobd.announced.socket).mode & 0o777, 0o660);
  // The daemon knows no credentials: the manager has them.
  const daemon = await launchDaemon(t, undefined, ["--blobs", `unix:${blobd.announced.socket}`]);
  const made = await daemon.json<{ size: number }>(["volume", "create", "disk", "--from", source.url]);
  assert.equal(made.size, content.length);
  assert.equal(existsSync(join(directory, "never.sock")), false);
});

void test("a configuration file with a mistake stops run and blobd as it stops serve", async (t) => {
  const directory = await temporaryDirectory(t);
  const config = join(directory, "ullage.toml");
  writeFileSync(config, `\nnbt = "127.0.0.1:1"\n`);
  for (const command of [
    ["run", "/dev/null"],
    ["blobd", "--data", directory],
  ]) {
    const { code, stderr } = await run([...command, "--config", config]);
    assert.notEqual(code, 0);
    assert.match(stderr, /ullage\.toml:2: there is no key 'nbt'/);
  }
});
