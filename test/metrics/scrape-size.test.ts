import assert from "node:assert/strict";
import { test } from "node:test";
import type { Measured, MeasuredVolume } from "../../src/daemon/health/measured.ts";
import { SourceTraffics } from "../../src/blob/source-traffic.ts";
import { VolumeMeters } from "../../src/daemon/volumes/volume-meters.ts";
import { Metrics } from "../../src/metrics/metrics.ts";
import { Scrape } from "./support.ts";

/** Volumes that have been read, written and flushed. */
function busyVolumes(count: number): MeasuredVolume[] {
  const meters = new VolumeMeters();
  return Array.from({ length: count }, (_, index) => {
    const meter = meters.of(`id${index}`);
    for (const operation of ["read", "write", "flush"] as const) meter.traffic[operation].count(0.02, 4096, 7);
    meter.traffic.failed("write", "ENOSPC");
    meter.flushRounds.ended(3, true);
    return {
      view: {
        id: `id${index}`,
        name: `volume-${index}`,
        size: 4096,
        state: "ok",
        reason: null,
        source: "/image.raw",
        pinned: true,
        blob: "b".repeat(32),
        format: "raw",
        origin: null,
        fetchedBytes: 0,
        writtenBytes: 0,
        hydration: {
          state: "none",
          reason: null,
          readyBytes: 0,
          totalBytes: 0,
          damagedBytes: 0,
          damaged: [],
          rateBytesPerSecond: 0,
          etaSeconds: null,
          limitBytesPerSecond: null,
          priority: 0,
        },
        settings: { hydrate: "off", sync: "normal", remoteAfterPowerLoss: "refuse", cache: "shared" },
        connections: 1,
        createdAt: "2026-01-01T00:00:00.000Z",
      },
      snapshots: 0,
      info: undefined,
      meter,
    };
  });
}

function measured(volumes: MeasuredVolume[], sources = new SourceTraffics()): Measured {
  return {
    process: { cpuSeconds: 1, residentBytes: 1, heapUsedBytes: 1 },
    recentDelay: { p50Ms: 0, p99Ms: 0, maxMs: 0 },
    checks: [],
    space: undefined,
    nbd: { connections: 0, accepted: 0, turnedAway: 0, inflight: 0, bufferBytes: 0 },
    sources: sources.all(),
    reclaim: { runs: 0, failures: 0, bytes: 0 },
    cache: { blobs: 0, diskBytes: 0, capacityBytes: null, reserve: 0, evictedBytes: 0 },
    volumes,
  };
}

void test("a thousand busy volumes are written in small pieces, with turns of the event loop in between, and complete", async () => {
  const pieces: string[] = [];
  let turns = 0;
  const count = (): void => {
    turns++;
    timer = setImmediate(count);
  };
  let timer = setImmediate(count);
  for await (const piece of new Metrics().text(measured(busyVolumes(1000)))) pieces.push(piece);
  clearImmediate(timer);
  const longest = Math.max(...pieces.map((piece) => piece.split("\n").length));
  assert.ok(longest <= 410, `a piece has ${longest} lines`);
  assert.ok(turns >= pieces.length / 2, `${turns} turns for ${pieces.length} pieces`);
  const scrape = new Scrape(pieces.join(""));
  assert.equal(scrape.sum("ullage_operation_duration_seconds_count"), 3 * 7 * 1000);
  assert.equal(scrape.value("ullage_operation_bytes_total", { volume: "volume-999", operation: "read" }), 4096);
  assert.equal(pieces.join("").match(/^# TYPE ullage_operation_duration_seconds /gm)?.length, 1);
  assert.ok(scrape.values.size < 75_000, `${scrape.values.size} series`);
});

void test("the number of hosts is bounded, and a label holds neither credentials nor a path", () => {
  const sources = new SourceTraffics();
  for (let index = 0; index < 1000; index++) sources.of(`https://h${index}.example.org/a?secret=${index}`).retries++;
  sources.of("/srv/image.raw").retries++;
  sources.of("https://user:pw@h0.example.org:8443/disk").retries++;
  const hosts = sources.all().map(({ host }) => host);
  assert.ok(hosts.length <= 257);
  assert.ok(hosts.includes("other"));
  assert.deepEqual(
    hosts.filter((host) => !/^(h\d+\.example\.org|other)$/.test(host)),
    [],
  );
  assert.equal(
    sources.all().reduce((sum, { retries }) => sum + retries, 0),
    1002,
  );
  assert.equal(new SourceTraffics().of("/srv/image.raw").host, "local");
});
