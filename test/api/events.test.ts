import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { connect } from "node:net";
import { join } from "node:path";
import { test } from "node:test";
import { EventStreams } from "../../src/api/event-stream.ts";
import type { Clock } from "../../src/base/clock.ts";
import { Events, type UllageEvent } from "../../src/daemon/events.ts";
import { VolumeNews } from "../../src/daemon/volumes/volume-news.ts";
import type { VolumeView } from "../../src/daemon/views.ts";
import { startHttpSource } from "../support/http-source.ts";
import { requireTool } from "../support/tools.ts";
import { EventClient } from "./event-client.ts";
import { startApi } from "./support.ts";

const post = (body: object): { method: string; body: object } => ({ method: "POST", body });

void test("whoever listens hears of a volume from its making to its end, as the object that the API shows", async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startApi(t);
  const client = await EventClient.connect(t, api.socketPath);
  await api.call("/v1/volumes", post({ name: "v", from: { source: api.image } }));
  const created = await client.next("volume-created");
  assert.deepEqual([created.data["name"], created.data["state"]], ["v", "creating"]);
  await client.next(({ name, data }) => name === "volume-changed" && data["state"] === "ok");
  const detached = await client.next(({ data }) => (data as unknown as VolumeView).hydration.state === "detached");
  const { body } = await api.call<VolumeView>("/v1/volumes/v");
  assert.deepEqual(detached.data, body);

  await api.call("/v1/volumes/v", { method: "PATCH", body: { settings: { sync: "always" } } });
  const changed = await client.next("volume-changed");
  assert.deepEqual(changed.data["settings"], { ...body.settings, sync: "always" });
  await api.call("/v1/volumes/v", { method: "PATCH", body: { settings: { sync: "always" } } });
  await api.call("/v1/volumes/v", { method: "DELETE" });
  assert.equal((await client.next(() => true)).name, "volume-removed", "what changed nothing is not told");
});

void test("a volume that could not be made is removed again for those who listen", async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startApi(t);
  await using source = await startHttpSource({ content: Buffer.alloc(1_000_000) });
  source.onRequest = ({ ranged }) => (ranged ? undefined : { kind: "cut", after: 1000 });
  const client = await EventClient.connect(t, api.socketPath);
  await api.call("/v1/volumes", post({ name: "v", from: { source: source.url, download: true } }));
  await client.next("volume-created");
  assert.equal((await client.next("volume-removed")).data["name"], "v");
});

void test("clients of exports are told of as they come and go", async (t) => {
  if (!requireTool(t, "curl", "nbdsh")) return;
  const api = await startApi(t);
  await api.call("/v1/volumes", post({ name: "v", size: 4096 }));
  const socket = join(api.ullage.health().dataDirectory, "nbd.sock");
  await api.ullage.serveNbd([{ kind: "unix", path: socket }]);
  const client = await EventClient.connect(t, api.socketPath);
  const script = ["-c", "h.pread(512, 0)", "-c", "import time", "-c", "time.sleep(60)"];
  const nbd = spawn("nbdsh", ["-u", `nbd+unix:///v?socket=${socket}`, ...script], { stdio: "ignore" });
  const opened = await client.next("connection-opened");
  assert.deepEqual(opened.data, {
    export: "v",
    connection: { protocol: "nbd", address: "unix", remote: false, writable: true },
  });
  await client.next(({ name, data }) => name === "volume-changed" && data["connections"] === 1);
  nbd.kill("SIGKILL");
  assert.deepEqual((await client.next("connection-closed")).data, opened.data);
  await client.next(({ name, data }) => name === "volume-changed" && data["connections"] === 0);
});

void test("warnings are told as they are logged", async (t) => {
  if (!requireTool(t, "curl")) return;
  const logged: string[] = [];
  const api = await startApi(t, { log: (_, message) => logged.push(message) });
  await using source = await startHttpSource({ content: Buffer.alloc(4_000_000) });
  await api.call("/v1/volumes", post({ name: "v", from: { source: source.url }, settings: { hydrate: "off" } }));
  const client = await EventClient.connect(t, api.socketPath);
  source.onRequest = () => ({ kind: "status", status: 404 });
  await api.call("/v1/volumes/v/hydration", { method: "PATCH", body: { state: "running" } });
  const warning = await client.next("warning");
  assert.match(String(warning.data["message"]), /hydration .* can't go on: .* answered 404/);
  assert.ok(logged.includes(String(warning.data["message"])));
  const degraded = await client.next(({ name, data }) => name === "volume-changed" && data["state"] === "degraded");
  assert.match(String(degraded.data["reason"]), /404/);
});

void test("progress is told", async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startApi(t);
  await using source = await startHttpSource({ content: Buffer.alloc(3_000_000), bytesPerSecond: 2_000_000 });
  const client = await EventClient.connect(t, api.socketPath);
  await api.call("/v1/volumes", post({ name: "v", from: { source: source.url } }));
  await client.next(({ data }) => (data as unknown as VolumeView).hydration.state === "detached");
  const progress = client.events.filter(({ name }) => name === "hydration");
  assert.ok(progress.length > 0);
  const bytes = progress.map(({ data }) => (data as unknown as VolumeView).hydration.readyBytes);
  assert.deepEqual(
    bytes,
    bytes.toSorted((a, b) => a - b),
  );
});

void test("snapshots, clones, new names and sizes are told of", async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startApi(t);
  await api.call("/v1/volumes", post({ name: "v", size: 4096 }));
  const client = await EventClient.connect(t, api.socketPath);
  const snapshot = await api.call("/v1/volumes/v/snapshots", post({ name: "s" }));
  assert.deepEqual((await client.next("snapshot-created")).data, snapshot.body);
  await api.call("/v1/volumes", post({ name: "w", from: { snapshot: "v@s" } }));
  await client.next(({ name, data }) => name === "volume-created" && data["name"] === "w");
  await client.next(({ name, data }) => name === "volume-changed" && data["name"] === "w" && data["state"] === "ok");
  await api.call("/v1/volumes/v", { method: "PATCH", body: { size: 8192 } });
  await client.next(({ name, data }) => name === "volume-changed" && data["name"] === "v" && data["size"] === 8192);
  const renamed = await api.call<VolumeView>("/v1/volumes/w", { method: "PATCH", body: { name: "x" } });
  const told = await client.next(({ name, data }) => name === "volume-changed" && data["name"] === "x");
  assert.equal(told.data["id"], renamed.body.id);
  assert.equal((await api.call("/v1/volumes/v/snapshots/s", { method: "DELETE" })).status, 204);
  assert.deepEqual((await client.next("snapshot-removed")).data, snapshot.body);
});

void test("volumes that come, change and go while they are listed are told of in order", async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startApi(t);
  const client = await EventClient.connect(t, api.socketPath);
  const names = ["a", "b", "c", "d"];
  const enough = new AbortController();
  const looking = (async () => {
    while (!enough.signal.aborted) {
      const { status, body } = await api.call("/v1/volumes");
      assert.equal(status, 200, JSON.stringify(body));
    }
  })();
  await Promise.all(
    names.map(async (name) => {
      for (let round = 0; round < 2; round++) {
        const made = await api.call("/v1/volumes", post({ name, from: { source: api.image } }));
        assert.equal(made.status, 201, JSON.stringify(made.body));
        await api.call(`/v1/volumes/${name}`, { method: "PATCH", body: { settings: { sync: "always" } } });
        const removed = await api.call(`/v1/volumes/${name}`, { method: "DELETE" });
        assert.equal(removed.status, 204, JSON.stringify(removed.body));
      }
    }),
  );
  enough.abort();
  await looking;
  await api.call("/v1/volumes", post({ name: "last", size: 4096 }));
  await client.next(({ data }) => data["name"] === "last");
  for (const name of names) {
    const told = client.events.filter(({ data }) => data["name"] === name).map((event) => event.name);
    const ends = told.filter((event) => event === "volume-created" || event === "volume-removed");
    const round = ["volume-created", "volume-removed"];
    assert.deepEqual(ends, [...round, ...round]);
    assert.equal(told.at(-1), "volume-removed");
  }
});

void test("who comes back with the last id gets what it missed, and nothing twice", async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startApi(t);
  const first = await EventClient.connect(t, api.socketPath);
  const { lastId } = first; // before any event
  for (const name of ["a", "b", "c"]) await api.call("/v1/volumes", post({ name, size: 4096 }));
  await first.next(({ data }) => data["name"] === "c" && data["state"] === "ok");
  await first.stop();
  for (const name of ["d", "e"]) await api.call("/v1/volumes", post({ name, size: 4096 }));

  const second = await EventClient.connect(t, api.socketPath, first.lastId);
  await second.next(({ data }) => data["name"] === "e" && data["state"] === "ok");
  const whole = await EventClient.connect(t, api.socketPath, lastId);
  await whole.next(({ data }) => data["name"] === "e" && data["state"] === "ok");
  assert.deepEqual(whole.events, [...first.events, ...second.events]);
  assert.equal(new Set(whole.events.map(({ id }) => id)).size, whole.events.length);
});

void test("who comes back with an id that says nothing is told to look anew", async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startApi(t);
  const before = await EventClient.connect(t, api.socketPath);
  await api.call("/v1/volumes", post({ name: "v", size: 4096 }));
  await before.next(({ data }) => data["state"] === "ok");
  const { lastId } = before;
  const life = lastId.split("-")[0];
  for (const id of ["0123abcd-1", `${life}-99999`, `${life}--1`, life, "x"]) {
    const client = await EventClient.connect(t, api.socketPath, id);
    const reset = await client.next(() => true);
    assert.deepEqual([reset.name, reset.id, typeof reset.data["reason"]], ["reset", lastId, "string"], id);
    await client.stop();
  }
  const refused = await api.refused("/v1/events", { headers: { "last-event-id": "x".repeat(65) } });
  assert.deepEqual([refused.status, refused.code], [400, "bad-request"]);
});

void test("HEAD opens no stream", async (t) => {
  const api = await startApi(t);
  assert.equal((await api.call("/v1/events", { method: "HEAD" })).status, 405);
});

void test("streams end when nothing is served any more", async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startApi(t);
  const client = await EventClient.connect(t, api.socketPath);
  await api.ullage.stopServing(0);
  await client.ended;
});

void test("a client that reads nothing is cut off; others get everything", async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startApi(t);
  const deaf = connect(api.socketPath);
  deaf.pause();
  deaf.write("GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n");
  const client = await EventClient.connect(t, api.socketPath);
  const message = "x".repeat(2000);
  const count = 8000;
  for (let n = 0; n < count; n++) {
    api.ullage.events.publish({ name: "warning", data: { code: String(n), message } });
    // The good one is given time to read; more than the deaf one's socket holds is published all the same.
    if (n % 500 === 499) await client.next(({ data }) => data["code"] === String(n));
  }
  assert.deepEqual(
    client.events.map(({ data }) => data["code"]),
    Array.from({ length: count }, (_, n) => String(n)),
  );
  const closed = once(deaf, "close", { signal: AbortSignal.timeout(30_000) });
  deaf.resume();
  await closed;
});

// ---- what is told of a volume, at which times --------------------------------------------------------------------------

void test("changes that follow each other are told together, progress twice a second, and nothing twice", async () => {
  const events = new Events();
  const sleepers: (() => void)[] = [];
  let now = 1000;
  const clock: Clock = {
    now: () => now,
    wallTime: () => "",
    sleep: () => new Promise((resolve) => sleepers.push(resolve)),
  };
  let view = { state: "ok", fetchedBytes: 0, hydration: { state: "running" } } as VolumeView;
  const news = new VolumeNews(events, clock, () => view);
  const told = (): unknown[] => events.read(0, 100).map(({ name, data }) => [name, (data as VolumeView).state]);

  news.created();
  news.changed();
  assert.deepEqual(told(), [["volume-created", "ok"]], "nothing has changed");
  view = { ...view, state: "degraded" };
  news.changed();
  view = { ...view, state: "poisoned" };
  news.changed();
  assert.equal(told().length, 1, "not so soon");
  now += 100;
  sleepers.shift()!();
  await new Promise(setImmediate);
  assert.deepEqual(told().slice(1), [["volume-changed", "poisoned"]]);
  now += 100;
  view = { ...view, state: "ok" };
  news.changed();
  assert.deepEqual(told().slice(2), [["volume-changed", "ok"]], "at once after a while");

  for (let n = 0; n < 100; n++) {
    now += 10;
    view = { ...view, fetchedBytes: n };
    news.progress();
    news.changed();
  }
  const progress = ["hydration", "ok"];
  assert.deepEqual(told().slice(3), [progress, progress]);
  view = { ...view, fetchedBytes: 100 };
  news.progress();
  now += 1000;
  news.progress();
  news.progress();
  assert.equal(told().length, 6, "of progress only what is new");
  now += 1000;
  news.progress();
  assert.equal(told().length, 6, "and no more after a while");
  news.removed();
  view = { ...view, state: "failed" };
  news.changed();
  now += 1000;
  news.progress();
  assert.deepEqual(told().slice(6), [["volume-removed", "ok"]]);
  assert.equal(sleepers.length, 0);
});

// ---- the streams by themselves, with their limits in reach --------------------------------------------------------------

const warning = (n: number): UllageEvent => ({ name: "warning", data: { code: String(n), message: "x" } });
const numbers = (text: string): number[] => [...text.matchAll(/"code":"(\d+)"/g)].map(([, n]) => Number(n));

void test("of old events only so many are kept, and what is beyond is a reset", () => {
  const events = new Events(10);
  for (let n = 0; n < 100; n++) events.publish(warning(n));
  assert.equal(events.end, 100);
  assert.ok(events.end - events.first >= 10 && events.end - events.first < 13);
  assert.deepEqual(numbers(JSON.stringify(events.read(95, 3))), [95, 96, 97]);
  assert.throws(() => events.read(events.first - 1, 1), RangeError);

  const streams = new EventStreams(events);
  const id = /id: (\w+-)100\n/.exec(String(streams.open(undefined).read()))![1];
  assert.match(
    String(streams.open(`${id}${events.first}`).read()),
    new RegExp(`^retry: \\d+\nid: ${id}${events.first}\n\n`),
  );
  assert.match(String(streams.open(`${id}${events.first - 1}`).read()), /event: reset\n/);
});

void test("who falls behind what is kept is cut off at once", async () => {
  const events = new Events(100);
  const stream = new EventStreams(events).open(undefined);
  const dropped = once(stream, "error");
  const message = "x".repeat(10_000);
  for (let n = 0; n < 200; n++) {
    events.publish({ name: "warning", data: { code: String(n), message } });
    await new Promise(setImmediate);
  }
  assert.ok(stream.destroyed);
  assert.match(((await dropped) as [Error])[0].message, /it fell too far behind/);
});

void test("a heartbeat is sent to those who take it, and who takes nothing for a while is cut off", async () => {
  const events = new Events();
  const streams = new EventStreams(events, { heartbeatMs: 20 });
  const good = streams.open(undefined);
  const deaf = streams.open(undefined);
  const dropped = once(deaf, "error");
  let heard = "";
  good.on("data", (chunk: Buffer) => (heard += chunk.toString()));
  for (let n = 0; n < 500; n++) events.publish({ name: "warning", data: { code: "1", message: "x".repeat(1000) } });
  const [error] = (await dropped) as [{ code: string }];
  assert.equal(error.code, "stream-dropped");
  while (!heard.includes(": alive")) await once(good, "data");
  assert.equal(numbers(heard).length, 500);
  good.destroy();
});

void test("there are only so many streams, and a closed one makes room", async () => {
  const streams = new EventStreams(new Events());
  const open = Array.from({ length: 64 }, () => streams.open(undefined));
  assert.throws(() => streams.open(undefined), { code: "too-many-streams" });
  open[5].destroy();
  await once(open[5], "close");
  streams.open(undefined).destroy();
  for (const stream of open) stream.destroy();
});
