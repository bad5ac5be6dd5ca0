import assert from "node:assert/strict";
import { readdir } from "node:fs/promises";
import { test } from "node:test";
import type { Clock } from "../../src/base/clock.ts";
import { IoError } from "../../src/base/errors.ts";
import type { File, FileSystem } from "../../src/base/file-system.ts";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { realFileSystem } from "../../src/base/real-file-system.ts";
import { DataProbe } from "../../src/daemon/directory/data-probe.ts";
import type { HealthView } from "../../src/daemon/views.ts";
import { launchDaemon } from "../cli/support.ts";
import { temporaryDirectory } from "../daemon/support.ts";
import { startHttpSource } from "../support/http-source.ts";
import { type Served, serveMeasured } from "./support.ts";

const noSpare = { refill: () => Promise.resolve() };

/** The real file system, whose calls can be made to fail or to hang. */
class Faults {
  /** Throws, or returns what to wait for. @param what `create`, `write` or `datasync` */
  before: (what: "create" | "write" | "datasync", path: string) => Promise<void> | undefined = () => undefined;
  space = realFileSystem.space.bind(realFileSystem);
  readonly fs: FileSystem = {
    ...realFileSystem,
    open: async (path, mode) => {
      if (mode === "create") await this.before("create", path);
      return this.#wrap(await realFileSystem.open(path, mode));
    },
    space: (path) => this.space(path),
  };

  #wrap(file: File): File {
    return new Proxy(file, {
      get: (target, key) => {
        const value: unknown = Reflect.get(target, key, target);
        if (key === "write" || key === "datasync") {
          return async (...args: unknown[]) => {
            await this.before(key, target.path);
            return (value as (...all: unknown[]) => Promise<void>).apply(target, args);
          };
        }
        return typeof value === "function" ? (value.bind(target) as unknown) : value;
      },
    });
  }
}

/** A clock that stands still; sleepers wake when it is moved. */
class ManualClock implements Clock {
  #now = 1000;
  #sleepers: { until: number; wake: () => void }[] = [];

  now(): number {
    return this.#now;
  }

  wallTime(): string {
    return "2026-01-01T00:00:00.000Z";
  }

  sleep(ms: number): Promise<void> {
    return new Promise((wake) => this.#sleepers.push({ until: this.#now + ms, wake }));
  }

  move(ms: number): void {
    this.#now += ms;
    for (const { until, wake } of this.#sleepers) if (until <= this.#now) wake();
  }
}

async function health(served: Served): Promise<HealthView & { http: number }> {
  const { status, body } = await served.get("/v1/health");
  return { http: status, ...(JSON.parse(body) as HealthView) };
}

function check(view: HealthView, name: string): [string, string | null] {
  const found = view.checks.find((each) => each.name === name)!;
  return [found.status, found.message];
}

void test("a daemon that is well says so, check by check, and leaves nothing behind by looking", async (t) => {
  const served = await serveMeasured(t);
  const view = await health(served);
  assert.equal(view.http, 200);
  assert.equal(view.status, "ok");
  assert.deepEqual(view.warnings, []);
  assert.deepEqual(
    view.checks.map(({ name, status, message }) => [name, status, message]),
    [
      "data",
      "durability",
      "volumes",
      "catalog",
      "space",
      "fileSystem",
      "start",
      "listeners",
      "sources",
      "eventLoop",
    ].map((name) => [name, "ok", null]),
  );
  assert.deepEqual(
    (await readdir(view.dataDirectory)).filter((name) => name.includes("probe")),
    [],
  );
});

for (const [errno, where] of [
  ["EROFS", "create"],
  ["ENOSPC", "write"],
  ["EIO", "datasync"],
] as const) {
  void test(`health fails with 503 when the data directory answers ${errno} to ${where}`, async (t) => {
    const faults = new Faults();
    const served = await serveMeasured(t, { fs: faults.fs });
    faults.before = (what, path) => {
      if (what === where && path.endsWith("health-probe")) throw new IoError(errno, `injected: ${errno}`);
      return undefined;
    };
    const view = await health(served);
    assert.deepEqual([view.http, view.status], [503, "fail"]);
    assert.deepEqual(check(view, "data"), ["fail", `${view.dataDirectory} takes no writes: injected: ${errno}`]);
    assert.deepEqual(
      view.warnings.map(({ code }) => code),
      ["data-unwritable"],
    );
    assert.equal((await served.scrape()).value("ullage_health", { check: "data" }), 2);
  });
}

void test("however often it is asked, the data directory is tried once in five seconds; what mended is found then", async (t) => {
  const faults = new Faults();
  const clock = new ManualClock();
  const directory = await temporaryDirectory(t);
  let tries = 0;
  faults.before = (what) => {
    if (what === "create" && ++tries === 1) throw new IoError("ENOSPC", "no space left");
    return undefined;
  };
  const probe = new DataProbe(faults.fs, clock, directory, noSpare);
  await Promise.all([probe.refresh(), probe.refresh()]);
  clock.move(4999);
  await probe.refresh();
  assert.equal(tries, 1);
  assert.deepEqual(
    probe.findings().map(({ code, status }) => [code, status]),
    [["data-unwritable", "fail"]],
  );
  clock.move(1);
  await probe.refresh();
  assert.equal(tries, 2);
  assert.deepEqual(probe.findings(), []);
  assert.deepEqual(await readdir(directory), []);
});

void test("a disk that does not answer fails health in time, is not tried again meanwhile, and is well when it does", async (t) => {
  const faults = new Faults();
  const clock = new ManualClock();
  const { promise, resolve } = Promise.withResolvers<void>();
  const syncing = Promise.withResolvers<void>();
  let syncs = 0;
  faults.before = (what) => {
    if (what !== "datasync") return undefined;
    syncs++;
    syncing.resolve();
    return promise;
  };
  const probe = new DataProbe(faults.fs, clock, await temporaryDirectory(t), noSpare);
  const asked = probe.refresh();
  await syncing.promise;
  clock.move(5000);
  await asked;
  await probe.refresh();
  assert.deepEqual(
    probe.findings().map(({ code, status }) => [code, status]),
    [["data-not-answering", "fail"]],
  );
  assert.equal(syncs, 1);
  resolve();
  while (probe.findings().length > 0) await new Promise((wake) => setTimeout(wake, 1));
});

void test("little free space is a warning that names the reserve, and is answered with 200", async (t) => {
  const faults = new Faults();
  const served = await serveMeasured(t, { fs: faults.fs });
  faults.space = () => Promise.resolve({ free: 3 * 2 ** 30, total: 100 * 2 ** 30 });
  const view = await health(served);
  assert.deepEqual([view.http, view.status, view.warnings[0].code], [200, "warn", "space-low"]);
  assert.match(check(view, "space")[1]!, /^3G of 100G are free: hydration waits below 5 %/);
  const scrape = await served.scrape();
  assert.equal(scrape.value("ullage_data_free_bytes"), 3 * 2 ** 30);
});

void test("a volume whose sync failed is poisoned, and health fails until somebody has dealt with it", async (t) => {
  const faults = new Faults();
  const served = await serveMeasured(t, { fs: faults.fs });
  await served.ullage.createVolume({ name: "v", size: 2 ** 20 });
  const device = await served.ullage.getDevice("v");
  await device.write(0, 4096, new IoBuffer(4096), 0);
  faults.before = (what, path) => {
    if (what === "datasync" && path.includes("/layers/")) throw new IoError("EIO", "injected: fdatasync failed");
    return undefined;
  };
  await assert.rejects(device.flush());
  const view = await health(served);
  assert.deepEqual([view.http, view.status], [503, "fail"]);
  assert.deepEqual(
    view.warnings.map(({ code }) => code),
    ["volume-poisoned"],
  );
  assert.match(check(view, "durability")[1]!, /^volume 'v' is poisoned: .*injected/);
  const scrape = await served.scrape();
  assert.equal(scrape.value("ullage_volume_state", { volume: "v", state: "poisoned" }), 1);
  assert.equal(scrape.value("ullage_flush_round_failures_total", { volume: "v" }), 1);
  faults.before = () => undefined;
  await served.ullage.reopenVolume("v", true);
  assert.equal((await health(served)).status, "ok");
});

void test("a source that does not answer is a warning with its last error and time, without its secrets, until it answers", async (t) => {
  const served = await serveMeasured(t);
  await using source = await startHttpSource({ content: Buffer.alloc(4 * 2 ** 20, "x") });
  const url = `${source.url}?X-Amz-Signature=s3cret`;
  await served.ullage.createVolume({ name: "v", from: { source: url }, settings: { hydrate: "off" } });
  const device = await served.ullage.getDevice("v");
  const buffer = new IoBuffer(4096);
  source.onRequest = () => ({ kind: "status", status: 403 });
  await assert.rejects(device.read(2 ** 21, 4096, buffer, 0));
  const asked = source.requestCount;
  const view = await health(served);
  assert.deepEqual([view.http, view.status], [200, "warn"]);
  assert.deepEqual(
    view.warnings.map(({ code }) => code),
    ["volume-degraded", "source-denied"],
  );
  const [, message] = check(view, "sources");
  assert.match(message!, /^http:\/\/127\.0\.0\.1:\d+\/disk\.img\?… answered 403 \(last at \d{4}-\d\d-\d\dT.*Z\)$/);
  assert.equal(source.requestCount, asked, "health asks no source");
  source.onRequest = undefined;
  await device.read(2 ** 21, 4096, buffer, 0);
  assert.equal((await health(served)).status, "ok");
});

void test("`ullage health` prints a table, or the object; its exit code tells whether something fails", async (t) => {
  const daemon = await launchDaemon(t);
  const table = await daemon.cli(["health"]);
  assert.equal(table.code, 0, table.stderr);
  assert.match(table.stdout, /^(ok|warn): Ullage \S+, process \d+, \//);
  assert.match(table.stdout, /^CHECK +STATUS +WHAT WAS FOUND$/m);
  assert.match(table.stdout, /^data +ok$/m);
  const object = await daemon.json<HealthView>(["health"]);
  assert.equal(object.dataDirectory, daemon.dataDir);
  assert.equal(object.checks.length, 10);
});
