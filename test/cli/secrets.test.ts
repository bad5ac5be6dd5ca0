import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { readdir, readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";
import { atEnd, temporaryDirectory } from "../daemon/support.ts";
import { startHttpSource } from "../support/http-source.ts";
import { requireTool } from "../support/tools.ts";
import { launch, launchDaemon, run } from "./support.ts";

const execute = promisify(execFile);
const timeout = 60_000;

/** Parts of a pre-signed address. What is quoted in it must not end it for whoever looks for it. */
const secrets = ["S3CRETSIGNATURE", "ANOTHERS3CRET", "S3CRETUSER", "S3CRETWORD"];

async function filesBelow(directory: string): Promise<string[]> {
  const found = await readdir(directory, { recursive: true, withFileTypes: true });
  return found.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
}

void test("what is secret in a source's address is kept for reading and shown nowhere", async (t) => {
  if (!requireTool(t, "nbdinfo", "nbdsh", "curl")) return;
  await using source = await startHttpSource({ content: Buffer.alloc(4 << 20, 1), path: "/it's/disk.img" });
  const query = `?X-Amz-Signature=${secrets[0]}&note=it's,(${secrets[1]})`;
  const address = source.url.replace("disk.img", `disk.img${query}`);
  const shown = `${source.url}?…`;
  const withUser = address.replace("://", `://${secrets[2]}:${secrets[3]}@`);
  const daemon = await launchDaemon(t, undefined, ["--log-level", "debug"]);
  const outputs: string[] = [];
  const cli = async (...args: string[]): Promise<string> => {
    const { stdout, stderr } = await daemon.cli(args);
    outputs.push(stdout, stderr);
    return stdout + stderr;
  };
  const events = spawn("curl", ["-sN", "--unix-socket", `${daemon.dataDir}/api.sock`, "http://localhost/v1/events"], {
    stdio: ["ignore", "pipe", "ignore"],
  });
  let told = "";
  events.stdout.on("data", (chunk: Buffer) => (told += chunk.toString()));
  const eventsEnded = new Promise((resolve) => events.once("close", resolve));
  atEnd(t, async () => {
    events.kill();
    await eventsEnded;
  });

  await cli("volume", "create", "web", "--from", withUser, "--hydrate", "off");
  await cli("volume", "create", "web2", "--from", address, "--hydrate", "off", "--json");
  assert.ok((await cli("volume", "show", "web")).split("\n").includes(`source       ${shown}`));
  await cli("snapshot", "create", "web@s");
  await cli("export", "add", "web", "--nbd", "x");
  await execute("nbdsh", ["-u", daemon.uri("web"), "-c", "h.pread(4096, 0)"], { timeout });
  assert.ok(
    source.requests.every(({ path }) => path.includes(secrets[0])),
    "it is read with all of its address",
  );

  // Whatever goes wrong says where, and not how.
  const wrong: [string[], RegExp][] = [
    [["--format", "nonsense"], /nonsense/],
    [["--size", "1M"], /size/],
    [["--snapshot", "web@s"], /one/],
  ];
  for (const [more, message] of wrong)
    assert.match(await cli("volume", "create", "n", "--from", address, ...more), message);
  for (const bad of [
    address.replace(/:\d+/, ":999999"),
    address.replace("http:", "gopher:"),
    address.replace("disk", "no disk"),
  ]) {
    assert.notEqual((await daemon.cli(["volume", "create", "n", "--from", bad])).code, 0);
    await cli("volume", "create", "n", "--from", bad);
    await cli("volume", "create", "n", "--from", bad, "--download");
  }
  source.etag = null;
  assert.match(await cli("volume", "create", "n", "--from", address), /offers nothing/);
  source.etag = '"another"';
  await execute("nbdsh", ["-u", daemon.uri("web"), "-c", "h.pread(4096, 2 << 20)"], { timeout }).catch(() => undefined);
  source.onRequest = () => ({ kind: "status", status: 403 });
  await execute("nbdsh", ["-u", daemon.uri("web"), "-c", "h.pread(4096, 3 << 20)"], { timeout }).catch(() => undefined);
  await cli("volume", "hydrate", "web");
  assert.match(await cli("health"), /disk\.img\?…/);
  for (const args of [
    ["volume", "ls"],
    ["volume", "ls", "--json"],
    ["export", "ls", "--json"],
    ["volume", "map", "web"],
  ]) {
    await cli(...args);
  }
  const { stdout: list } = await execute("nbdinfo", ["--list", daemon.uri("")], { timeout });
  assert.match(list, /disk\.img\?…/);
  outputs.push(list);
  for (const path of ["metrics", "v1/health", "v1/stats", "v1/jobs", "v1/volumes", "v1/snapshots"]) {
    const args = ["-s", "--unix-socket", `${daemon.dataDir}/api.sock`, `http://localhost/${path}`];
    outputs.push((await execute("curl", args, { timeout })).stdout);
  }
  events.kill();
  await eventsEnded;
  assert.match(told, /disk\.img\?…/);
  const { stdout, stderr } = await daemon.stop();
  outputs.push(told, stdout, stderr);

  // On disk it is in files that only their owner reads.
  const holding: string[] = [];
  for (const path of await filesBelow(daemon.dataDir)) {
    const { mode } = await stat(path);
    const text = await readFile(path, "latin1");
    assert.ok(!text.includes(secrets[3]), `${path} has the password`);
    if (!secrets.some((secret) => text.includes(secret))) continue;
    assert.equal(mode & 0o077, 0, `${path} has mode ${(mode & 0o777).toString(8)}`);
    holding.push(path.replace(/[0-9a-f]{32}/, "ID"));
    if (path.endsWith("/meta.json")) await writeFile(join(path, "../map"), "no range map");
  }
  assert.deepEqual([...new Set(holding.map((path) => path.slice(daemon.dataDir.length + 1)))].sort(), [
    "blobs.json",
    "blobs/ID/meta.json",
    "catalog.db",
    "volumes/ID/volume.json",
  ]);
  for (const command of ["check", "repair"]) {
    const { stdout: text, stderr: more } = await run([command, daemon.dataDir]);
    outputs.push(text, more);
    assert.match(text + more, command === "check" ? /can't be believed/ : /again from .*disk\.img\?…/);
  }
  for (const text of outputs) {
    for (const secret of secrets) assert.ok(!text.includes(secret), text);
  }
});

void test("`run` goes on with the same secret address, and names neither it nor another", async (t) => {
  await using source = await startHttpSource({ content: Buffer.alloc(1 << 20, 1) });
  const data = join(await temporaryDirectory(t), "data");
  const args = (secret: string): string[] => [
    "run",
    `${source.url}?sig=${secret}`,
    "--data",
    data,
    "--nbd",
    "127.0.0.1:0",
  ];
  for (let time = 0; time < 2; time++) {
    const running = await launch<{ volume: { source: string } }>(t, args(secrets[0]));
    assert.equal(running.announced.volume.source, `${source.url}?…`);
    const { stderr, stdout } = await running.stop();
    assert.ok(!(stdout + stderr).includes(secrets[0]));
  }
  const { code, stdout, stderr } = await run(args(secrets[1]));
  assert.equal(code, 1);
  assert.match(stderr, /holds a disk made from .*disk\.img\?…, not from .*disk\.img\?…/);
  assert.ok(!secrets.some((secret) => (stdout + stderr).includes(secret)), stderr);
});
