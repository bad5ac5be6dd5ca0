import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { nbdsh, succeed, until } from "../nbd/support.ts";
import { startHttpSource } from "../support/http-source.ts";
import { requireTool } from "../support/tools.ts";
import { type Scrape, serveMeasured } from "./support.ts";

const MiB = 1024 * 1024;

/** Lints as well: names, units, help texts. */
function promtoolCheck(text: string): { status: number | null; output: string } {
  const { status, stdout, stderr } = spawnSync("promtool", ["check", "metrics"], {
    input: text,
    encoding: "utf8",
    timeout: 60_000,
  });
  return { status, output: stdout + stderr };
}

/** Every histogram: cumulative, and its last bucket is its count. */
function checkHistograms(scrape: Scrape): void {
  for (const [family, type] of scrape.types) {
    if (type !== "histogram") continue;
    const last = new Map<string, number>();
    for (const [series, value] of scrape.values) {
      if (!series.startsWith(`${family}_bucket{`)) continue;
      const others = series
        .replace(/le="[^"]*",?/, "")
        .replace("_bucket{", "_count{")
        .replace(/,\}/, "}");
      if (series.includes('le="+Inf"')) assert.equal(value, scrape.values.get(others), series);
      last.set(others, Math.max(last.get(others) ?? 0, value));
    }
    for (const [series, value] of last) assert.equal(value, scrape.values.get(series), series);
  }
}

void test("promtool accepts what is served while volumes are written, read and filled, and finds nothing to mend", async (t) => {
  if (!requireTool(t, "promtool", "nbdcopy", "qemu-io", "nbdsh")) return;
  const served = await serveMeasured(t);
  await using source = await startHttpSource({ content: randomBytes(16 * MiB), latencyMs: 2 });
  await served.ullage.createVolume({ name: "web", from: { source: source.url } });
  await served.ullage.createVolume({ name: "empty", size: 64 * MiB });
  const load = Promise.all([
    succeed("nbdcopy", [served.uri("web"), join(served.directory, "copy")]),
    succeed("qemu-io", ["-f", "raw", "-c", "write 0 8M", "-c", "flush", "-c", "discard 0 4M", served.uri("empty")]),
    nbdsh(`h.set_strict_mode(0)
h.connect_uri("${served.uri("empty")}")
try: h.pread(512, 1 << 40)
except nbd.Error: pass`),
  ]);
  const during = await served.scrape();
  await load;
  const after = await served.scrape();
  for (const scrape of [during, after]) {
    assert.deepEqual(promtoolCheck(scrape.text), { status: 0, output: "" });
    checkHistograms(scrape);
  }
  const { status, type } = await served.get("/metrics");
  assert.equal(status, 200);
  assert.match(type, /^text\/plain; version=0\.0\.4/);
  assert.equal(promtoolCheck("bad_total{ 1\n").status, 1); // so it does look
});

void test("counters agree with a workload: what qemu-io and nbdcopy did is what is counted", async (t) => {
  if (!requireTool(t, "nbdcopy", "qemu-io", "nbdsh")) return;
  const served = await serveMeasured(t);
  await served.ullage.createVolume({ name: "v", size: 32 * MiB });
  const commands = [
    "write 0 64k",
    "write 1M 64k",
    "write -z 2M 1M",
    "discard 0 64k",
    "flush",
    "read 1M 128k",
    "read 0 4k",
  ];
  await succeed("qemu-io", ["-f", "raw", "-t", "none", ...commands.flatMap((each) => ["-c", each]), served.uri("v")]);
  const first = await served.scrape();
  const bytes = (scrape: Scrape, operation: string): number =>
    scrape.value("ullage_operation_bytes_total", { volume: "v", operation });
  const count = (scrape: Scrape, operation: string): number =>
    scrape.value("ullage_operation_duration_seconds_count", { volume: "v", operation });
  assert.deepEqual(
    ["write", "zero", "trim", "read"].map((operation) => [count(first, operation), bytes(first, operation)]),
    [
      [2, 128 * 1024],
      [1, MiB],
      [1, 64 * 1024],
      [2, 132 * 1024],
    ],
  );
  assert.ok(count(first, "flush") >= 1);
  assert.equal(first.sum("ullage_operation_errors_total"), 0);
  assert.ok(first.value("ullage_flush_round_duration_seconds_count", { volume: "v" }) >= 1);
  // qemu-io zeroes without letting go of the space, unless it is told to
  assert.equal(first.value("ullage_volume_written_bytes", { volume: "v" }), 64 * 1024 + MiB);
  assert.ok(first.value("ullage_volume_log_bytes", { volume: "v" }) > 0);
  assert.ok(first.value("ullage_volume_map_bytes", { volume: "v" }) > 0);

  const image = join(served.directory, "image");
  await writeFile(image, randomBytes(32 * MiB));
  await succeed("nbdcopy", ["--flush", image, served.uri("v")]);
  const second = await served.scrape();
  assert.equal(bytes(second, "write") - bytes(first, "write"), 32 * MiB);
  await succeed("nbdcopy", [served.uri("v"), join(served.directory, "copy")]);
  const third = await served.scrape();
  assert.equal(bytes(third, "read") - bytes(second, "read"), 32 * MiB);
  assert.equal(third.value("ullage_volume_written_bytes", { volume: "v" }), 32 * MiB);
  assert.ok(third.value("ullage_nbd_accepted_total") >= 3);
  await nbdsh(`h.connect_uri("${served.uri("v")}")
h.pread(512, 0)`);
  await until(() => served.ullage.connections("v").length === 0, "the client has gone");
  assert.equal((await served.scrape()).value("ullage_nbd_connections"), 0);
});

void test("what comes from a source is counted once, by host; a read that waits for it is a miss, the next a hit", async (t) => {
  if (!requireTool(t, "nbdcopy", "nbdsh")) return;
  const served = await serveMeasured(t);
  await using source = await startHttpSource({ content: randomBytes(8 * MiB), credentials: "ann:s3cret" });
  const address = source.url.replace("http://", "http://ann:s3cret@");
  await served.ullage.createVolume({ name: "v", from: { source: address }, settings: { hydrate: "off" } });
  const host = `127.0.0.1:${source.port}`;
  await nbdsh(`h.connect_uri("${served.uri("v")}")
h.pread(4096, 4 << 20)
h.pread(4096, 4 << 20)
h.pread(4096, 4 << 20)`);
  const first = await served.scrape();
  const reads = (result: string): number => first.value("ullage_cache_reads_total", { volume: "v", result });
  assert.deepEqual([reads("miss"), reads("hit")], [1, 2]);
  assert.equal(first.value("ullage_source_requests_total", { host, lane: "foreground" }), 1);

  source.inject({ kind: "status", status: 503 }, 2);
  await succeed("nbdcopy", [served.uri("v"), join(served.directory, "copy")]);
  const second = await served.scrape();
  assert.equal(second.value("ullage_source_retries_total", { host }), 2);
  assert.equal(second.sum("ullage_source_bytes_total", { host }), 8 * MiB);
  const requests = second.sum("ullage_source_requests_total", { host });
  assert.equal(second.sum("ullage_source_fetch_duration_seconds_count", { host }), requests);
  assert.equal(second.value("ullage_volume_fetched_bytes", { volume: "v" }), 8 * MiB);
  assert.doesNotMatch(second.text, /ann|s3cret/);
});

void test("a source that fails is counted by the error's code, and so is the client's error", async (t) => {
  if (!requireTool(t, "nbdsh")) return;
  const served = await serveMeasured(t);
  await using source = await startHttpSource({ content: randomBytes(4 * MiB) });
  await served.ullage.createVolume({ name: "v", from: { source: source.url }, settings: { hydrate: "off" } });
  source.onRequest = () => ({ kind: "status", status: 404 });
  await nbdsh(`h.connect_uri("${served.uri("v")}")
try: h.pread(4096, 2 << 20)
except nbd.Error: pass`);
  const scrape = await served.scrape();
  const host = `127.0.0.1:${source.port}`;
  assert.equal(scrape.value("ullage_source_errors_total", { host, code: "source-not-found" }), 1);
  assert.equal(scrape.value("ullage_operation_errors_total", { volume: "v", operation: "read", errno: "EIO" }), 1);
  assert.equal(scrape.value("ullage_health", { check: "sources" }), 1);
});

void test("hydration shows how far it is, and that the volume is detached at its end", async (t) => {
  const served = await serveMeasured(t);
  await using source = await startHttpSource({ content: randomBytes(4 * MiB) });
  await served.ullage.createVolume({ name: "v", from: { source: source.url } });
  for (;;) {
    const { hydration } = await served.ullage.showVolume("v");
    if (hydration.state === "detached") break;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  const scrape = await served.scrape();
  assert.equal(scrape.value("ullage_hydration_state", { volume: "v", state: "detached" }), 1);
  assert.equal(scrape.value("ullage_hydration_ready_bytes", { volume: "v" }), 4 * MiB);
  assert.equal(scrape.value("ullage_hydration_total_bytes", { volume: "v" }), 4 * MiB);
  assert.equal(scrape.value("ullage_volumes", { state: "ok" }), 1);
});

void test("counters of a volume go with it, and begin anew with the next one of its name", async (t) => {
  if (!requireTool(t, "nbdsh")) return;
  const served = await serveMeasured(t);
  const use = (): Promise<string> => nbdsh(`h.connect_uri("${served.uri("v")}")\nh.pwrite(b"x" * 4096, 0)`);
  await served.ullage.createVolume({ name: "v", size: MiB });
  await use();
  await served.ullage.removeVolume("v", { force: true });
  const between = await served.scrape();
  assert.equal([...between.values.keys()].filter((series) => series.includes('volume="v"')).length, 0);
  await served.ullage.createVolume({ name: "v", size: MiB });
  await use();
  const labels = { volume: "v", operation: "write" };
  assert.equal((await served.scrape()).value("ullage_operation_bytes_total", labels), 4096);
});

void test("counters follow a volume to its new name, and what is read of its snapshots counts for it", async (t) => {
  if (!requireTool(t, "nbdsh")) return;
  const served = await serveMeasured(t);
  await served.ullage.createVolume({ name: "old", size: MiB });
  await nbdsh(`h.connect_uri("${served.uri("old")}")\nh.pwrite(b"x" * 4096, 0)`);
  await served.ullage.createSnapshot("old", "monday");
  await served.ullage.changeVolume("old", { name: "new" });
  await nbdsh(`h.connect_uri("${served.uri("new@monday")}")\nh.pread(8192, 0)`);
  const scrape = await served.scrape();
  const bytes = (operation: string): number =>
    scrape.value("ullage_operation_bytes_total", { volume: "new", operation });
  assert.deepEqual([bytes("write"), bytes("read")], [4096, 8192]);
  assert.equal(scrape.value("ullage_volume_snapshots", { volume: "new" }), 1);
  assert.doesNotMatch(scrape.text, /volume="old"|monday/);
});

void test("requests to the API are counted by the route that answers, whatever was asked for, and logged for debugging", async (t) => {
  const lines: { message: string; fields: Record<string, unknown> }[] = [];
  const served = await serveMeasured(t, {
    log: (level, message, fields = {}) => void (level === "debug" && lines.push({ message, fields })),
  });
  for (const path of ["/v1/volumes/a", "/v1/volumes/b", "/nothing/here", "/nothing/there"]) await served.get(path);
  const scrape = await served.scrape();
  const requests = (route: string): number =>
    scrape.value("ullage_api_requests_total", { method: "GET", route, status: "404" });
  assert.deepEqual([requests("/v1/volumes/:name"), requests("unknown")], [2, 2]);
  assert.equal(scrape.sum("ullage_api_request_duration_seconds_count"), 4);
  const [line] = lines;
  assert.match(line.message, /^GET \/v1\/volumes\/:name: 404 after [\d.]+ ms \(request \w+\)$/);
  assert.deepEqual([line.fields["status"], line.fields["method"]], [404, "GET"]);
});
