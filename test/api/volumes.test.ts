import assert from "node:assert/strict";
import { readdir, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { ApiListener } from "../../src/api/api-listener.ts";
import type { BlobView, ConnectionView, HydrationView, VolumeView } from "../../src/daemon/views.ts";
import type { Client } from "../../src/export/block-device.ts";
import { startHttpSource } from "../support/http-source.ts";
import { startApi, type TestApi } from "./support.ts";

const create = (
  body: object,
  headers: Record<string, string> = {},
): { method: string; body: object; headers: Record<string, string> } => ({
  method: "POST",
  body,
  headers,
});

function client(writable: boolean): Client & { closed: string | undefined } {
  return {
    protocol: "nbd",
    address: "unix",
    remote: false,
    writable,
    closed: undefined,
    close(reason) {
      this.closed = reason;
    },
  };
}

void test("a volume is answered as one object, the same after making, showing and listing", async (t) => {
  const api = await startApi(t);
  const made = await api.call<VolumeView>("/v1/volumes", create({ name: "v", from: { source: api.image } }));
  assert.equal(made.status, 201);
  assert.equal(made.headers["location"], "/v1/volumes/v");
  const { id, createdAt, hydration, fetchedBytes, blob, ...rest } = made.body;
  assert.match(id, /^[0-9a-f]{32}$/);
  assert.equal(new Date(createdAt).toISOString(), createdAt);
  assert.ok(fetchedBytes >= 0);
  assert.deepEqual((await api.call<BlobView>(`/v1/blobs/${blob}`)).body.volumes, ["v"]);
  assert.deepEqual(rest, {
    name: "v",
    size: 1_000_448,
    state: "ok",
    reason: null,
    source: api.image,
    pinned: true,
    format: "raw",
    origin: null,
    writtenBytes: rest.writtenBytes,
    settings: { hydrate: "auto", sync: "normal", remoteAfterPowerLoss: "refuse", cache: "shared" },
    connections: 0,
  });
  assert.deepEqual(Object.keys(hydration).sort(), [
    "damaged",
    "damagedBytes",
    "etaSeconds",
    "limitBytesPerSecond",
    "priority",
    "rateBytesPerSecond",
    "readyBytes",
    "reason",
    "state",
    "totalBytes",
  ]);
  const shown = await api.call<VolumeView>("/v1/volumes/v");
  assert.deepEqual([shown.status, shown.body.id, Object.keys(shown.body)], [200, id, Object.keys(made.body)]);
  const listed = await api.call<{ volumes: VolumeView[]; next: null }>("/v1/volumes");
  assert.deepEqual([listed.body.volumes.map((volume) => volume.id), listed.body.next], [[id], null]);
});

void test("lists go on where `next` says, in the order of names", async (t) => {
  const api = await startApi(t);
  for (const name of ["b", "d", "a", "c", "e"]) await api.call("/v1/volumes", create({ name, size: 4096 }));
  const names: string[][] = [];
  let next: string | null = "";
  while (next !== null) {
    const query: string = next === "" ? "" : `&cursor=${next}`;
    const page: { body: { volumes: VolumeView[]; next: string | null } } = await api.call(
      `/v1/volumes?limit=2${query}`,
    );
    names.push(page.body.volumes.map(({ name }) => name));
    next = page.body.next;
  }
  assert.deepEqual(names, [["a", "b"], ["c", "d"], ["e"]]);
  assert.equal((await api.refused("/v1/volumes?cursor=%21")).code, "bad-cursor");
});

void test("a list of snapshots goes on where it was, though the one it ended with is gone", async (t) => {
  const api = await startApi(t);
  for (const name of ["b", "a-b", "a"]) {
    await api.call("/v1/volumes", create({ name, size: 4096 }));
    for (const snapshot of ["s1", "s2"]) {
      await api.call(`/v1/volumes/${name}/snapshots`, { method: "POST", body: { name: snapshot } });
    }
  }
  type Page = { snapshots: { volume: string; name: string }[]; next: string | null };
  const names: string[] = [];
  for (let next: string | null = ""; next !== null;) {
    const query: string = next === "" ? "" : `&cursor=${next}`;
    const { body }: { body: Page } = await api.call(`/v1/snapshots?limit=1${query}`);
    names.push(...body.snapshots.map(({ volume, name }) => `${volume}@${name}`));
    const { volume, name } = body.snapshots[0];
    await api.call(`/v1/volumes/${volume}/snapshots/${name}`, { method: "DELETE" });
    next = body.next;
  }
  assert.deepEqual(names, ["a@s1", "a@s2", "a-b@s1", "a-b@s2", "b@s1", "b@s2"]);
  assert.equal((await api.refused("/v1/snapshots?cursor=YQ")).code, "bad-cursor");
});

void test("names may look like numbers and booleans", async (t) => {
  const api = await startApi(t);
  await api.call("/v1/volumes", create({ name: "123", size: 4096 }));
  for (const name of ["1", "true"]) await api.call("/v1/volumes/123/snapshots", { method: "POST", body: { name } });
  assert.equal((await api.call("/v1/volumes/123/snapshots/1/diff?to=true&limit=5")).status, 200);
  const listed = await api.call<{ snapshots: unknown[] }>("/v1/snapshots?volume=123&limit=1");
  assert.deepEqual([listed.status, listed.body.snapshots.length], [200, 1]);
});

void test("what is wrong with a request is said so that one can mend it", async (t) => {
  const api = await startApi(t);
  const cases: [object, RegExp][] = [
    [{ name: "a b", size: 512 }, /^body\/name: names begin with a letter or digit and have at most 128 of/],
    [{ name: "v", size: 512, settings: { sync: "never" } }, /^body\/settings\/sync must be normal or always$/],
    [{ name: "v", size: 512, colour: "red" }, /^body: there is no key 'colour'$/],
    [{ name: "v", size: 0 }, /^a size of 0 bytes is less than 512 bytes$/],
  ];
  for (const [body, detail] of cases) assert.match((await api.refused("/v1/volumes", create(body))).detail, detail);
});

void test("another method than a path takes is answered with those that it takes", async (t) => {
  const api = await startApi(t);
  const { headers } = await api.call("/v1/volumes/v/hydration", { method: "DELETE" });
  assert.equal(headers["allow"], "GET, HEAD, PATCH");
});

void test("errors are problem documents with a stable code", async (t) => {
  const api = await startApi(t);
  await api.call("/v1/volumes", create({ name: "v", size: 4096 }));
  const cases: [string, Parameters<TestApi["refused"]>[1], number, string][] = [
    ["/v1/volumes/none", {}, 404, "not-found"],
    ["/v1/volumes/none", { method: "DELETE" }, 404, "not-found"],
    ["/v1/nothing", {}, 404, "no-such-path"],
    ["/v1/volumes", { method: "DELETE" }, 405, "wrong-method"],
    ["/v1/volumes/v/map", { method: "POST", body: {} }, 405, "wrong-method"],
    ["/openapi.json", { method: "PUT", body: {} }, 405, "wrong-method"],
    ["/openapiXjson", { method: "PUT", body: {} }, 404, "no-such-path"],
    ["/dashboard/none.js", {}, 404, "no-such-path"],
    ["/v1/volumes", create({ name: "w", size: 2 ** 53 - 512 }), 400, "bad-size"],
    ["/v1/volumes/v", { method: "PATCH", body: { size: 2 ** 53 - 512 } }, 400, "bad-size"],
    ["/v1/volumes", create({ name: "v", size: 4096 }), 409, "name-taken"],
    ["/v1/volumes", create({ name: "-v", size: 4096 }), 400, "bad-request"],
    ["/v1/volumes", create({ name: "w" }), 400, "bad-size"],
    ["/v1/volumes", create({ name: "w", size: "4096" }), 400, "bad-request"],
    ["/v1/volumes", create({ name: "w", size: 1000 }), 400, "bad-size"],
    ["/v1/volumes", create({ name: "w", size: 4096, colour: "red" }), 400, "bad-request"],
    ["/v1/volumes", create({ name: "w", from: { source: "/x", url: "/x" } }), 400, "bad-request"],
    ["/v1/volumes", create({ name: "w", from: { source: join(api.image, "no") } }), 422, "source-not-found"],
    ["/v1/volumes", create({ name: "w", from: { source: "ftp://x/y" } }), 422, "source-unsupported"],
    ["/v1/volumes", create({ name: "w", from: { source: api.image, format: "zap" } }), 422, "format-unknown"],
    ["/v1/volumes", { method: "POST", body: "{", headers: { "content-type": "application/json" } }, 400, "bad-request"],
    ["/v1/volumes", { method: "POST", body: "x", headers: { "content-type": "text/plain" } }, 415, "not-json"],
    ["/v1/volumes?limit=0", {}, 400, "bad-request"],
    ["/v1/volumes?size=1", {}, 400, "bad-request"],
    ["/v1/volumes/v", { method: "PATCH", body: { size: "8192" } }, 400, "bad-request"],
    ["/v1/volumes/v", { method: "PATCH", body: { size: 8193 } }, 400, "bad-size"],
    ["/v1/volumes/v", { method: "PATCH", body: { size: 512 } }, 409, "shrinks"],
    ["/v1/volumes/v", { method: "PATCH", body: { name: "../w" } }, 400, "bad-request"],
    ["/v1/volumes/v/snapshots", { method: "POST", body: {} }, 400, "bad-request"],
    ["/v1/volumes/v/snapshots", { method: "POST", body: { name: "a@b" } }, 400, "bad-request"],
    ["/v1/volumes/none/snapshots", { method: "POST", body: { name: "s" } }, 404, "not-found"],
    ["/v1/volumes/v/snapshots/none", { method: "DELETE" }, 404, "not-found"],
    ["/v1/volumes/v/revert", { method: "POST", body: { snapshot: "none" } }, 404, "not-found"],
    ["/v1/snapshots?volume=none", {}, 404, "not-found"],
    ["/v1/volumes", create({ name: "c", from: { snapshot: "v" } }), 400, "bad-name"],
    ["/v1/volumes", create({ name: "c", from: { snapshot: "v@none" } }), 404, "not-found"],
    ["/v1/volumes", create({ name: "c", from: { volume: "none" } }), 404, "not-found"],
    ["/v1/volumes", create({ name: "c", from: { volume: "v", snapshot: "v@s" } }), 400, "bad-request"],
    ["/v1/volumes/v", { method: "PATCH", body: { settings: { sync: "never" } } }, 400, "bad-request"],
    ["/v1/volumes/v/hydration", { method: "PATCH", body: { state: "running" } }, 409, "no-source"],
    ["/v1/volumes/v/hydration", { method: "PATCH", body: { state: "detached" } }, 400, "bad-request"],
  ];
  for (const [path, options, status, code] of cases) {
    const problem = await api.refused(path, options);
    const what = `${path} ${JSON.stringify(options)}: ${problem.detail}`;
    assert.deepEqual([problem.status, problem.code], [status, code], what);
    assert.equal(typeof problem.title, "string", what);
  }
  const sized = await api.refused("/v1/volumes", create({ name: "w", size: 1000 }));
  assert.equal(sized.hint, "the nearest valid size is 1024 (1k)");
  assert.deepEqual(
    (await api.ullage.listVolumes()).map(({ name }) => name),
    ["v"],
  );
});

void test("a repeated request with the same key makes one volume, and a key is for one request only", async (t) => {
  const api = await startApi(t);
  const key = { "idempotency-key": "k1" };
  const answers = await Promise.all(
    Array.from({ length: 5 }, () =>
      api.call<VolumeView>("/v1/volumes", create({ name: "v", from: { source: api.image } }, key)),
    ),
  );
  assert.deepEqual(new Set(answers.map(({ status }) => status)), new Set([201]));
  assert.equal(new Set(answers.map(({ body }) => body.id)).size, 1);
  const later = await api.call<VolumeView>("/v1/volumes", create({ name: "v", from: { source: api.image } }, key));
  assert.equal(later.body.id, answers[0].body.id);
  const other = await api.refused("/v1/volumes", create({ name: "w", size: 4096 }, key));
  assert.deepEqual([other.status, other.code], [422, "request-key-reused"]);
  await api.ullage.removeVolume("v");
  const again = await api.call<VolumeView>("/v1/volumes", create({ name: "v", from: { source: api.image } }, key));
  assert.notEqual(again.body.id, later.body.id);
});

void test("of two requests for one name at once, one wins", async (t) => {
  const api = await startApi(t);
  const answers = await Promise.all(
    [1, 2, 3].map(() => api.call("/v1/volumes", create({ name: "v", from: { source: api.image } }))),
  );
  assert.deepEqual(
    answers.map(({ status }) => status).sort((a, b) => a - b),
    [201, 409, 409],
  );
});

void test("a volume with writers is removed only by force, which ends their connections", async (t) => {
  const api = await startApi(t);
  await api.call("/v1/volumes", create({ name: "v", size: 4096 }));
  const device = await api.ullage.getDevice("v");
  const writer = client(true);
  const stay = await device.attach(writer);
  const connections = await api.call<{ connections: ConnectionView[]; next: null }>("/v1/volumes/v/connections");
  assert.deepEqual(connections.body, {
    connections: [{ protocol: "nbd", address: "unix", remote: false, writable: true }],
    next: null,
  });
  const refused = await api.refused("/v1/volumes/v", { method: "DELETE" });
  assert.deepEqual([refused.status, refused.code], [409, "in-use"]);
  assert.equal(writer.closed, undefined);
  writer.close = (reason) => {
    writer.closed = reason;
    stay.release(false);
  };
  assert.equal((await api.call("/v1/volumes/v?force=true", { method: "DELETE" })).status, 204);
  assert.equal(writer.closed, "the volume is being removed");
  assert.equal((await api.refused("/v1/volumes/v")).code, "not-found");
});

void test("what was fetched of an image stays when its last volume goes; the next one finds it", async (t) => {
  const api = await startApi(t);
  for (const name of ["a", "b"]) await api.call("/v1/volumes", create({ name, from: { source: api.image } }));
  const blobs = async (): Promise<number> => (await readdir(join(api.ullage.health().dataDirectory, "blobs"))).length;
  assert.equal(await blobs(), 1);
  while ((await api.ullage.showVolume("a")).fetchedBytes === 0) await new Promise((next) => setTimeout(next, 5));
  await api.ullage.removeVolume("a");
  assert.equal(await blobs(), 1);
  await api.ullage.removeVolume("b");
  assert.equal(await blobs(), 1);
  await api.call("/v1/volumes", create({ name: "c", from: { source: api.image } }));
  assert.equal(await blobs(), 1);
});

void test("hydration is paused, limited, preferred and resumed", async (t) => {
  await using source = await startHttpSource({ content: Buffer.alloc(4 * 2 ** 20, "x"), bytesPerSecond: 64 * 1024 });
  const api = await startApi(t);
  await api.call("/v1/volumes", create({ name: "v", from: { source: source.url } }));
  const path = "/v1/volumes/v/hydration";
  const steer = async (body: object): Promise<HydrationView> =>
    (await api.call<HydrationView>(path, { method: "PATCH", body })).body;
  assert.equal((await steer({ state: "paused" })).state, "paused");
  const limited = await steer({ limitBytesPerSecond: 1000, priority: 5 });
  assert.deepEqual([limited.state, limited.limitBytesPerSecond, limited.priority], ["paused", 1000, 5]);
  const resumed = await steer({ state: "running", limitBytesPerSecond: null });
  assert.deepEqual([resumed.limitBytesPerSecond, resumed.priority], [null, 5]);
  assert.notEqual(resumed.state, "paused");
  assert.equal((await api.call<HydrationView>(path)).body.totalBytes, 4 * 2 ** 20);
});

void test("settings change one by one and stay", async (t) => {
  const api = await startApi(t);
  await api.call("/v1/volumes", create({ name: "v", size: 4096, settings: { sync: "always" } }));
  const changed = await api.call<VolumeView>("/v1/volumes/v", {
    method: "PATCH",
    body: { settings: { remoteAfterPowerLoss: "serve" } },
  });
  assert.deepEqual(changed.body.settings, {
    hydrate: "auto",
    sync: "always",
    remoteAfterPowerLoss: "serve",
    cache: "shared",
  });
});

void test("the map comes in pages", async (t) => {
  const api = await startApi(t);
  await api.call(
    "/v1/volumes",
    create({ name: "v", from: { source: api.image }, size: 2 ** 20, settings: { hydrate: "off" } }),
  );
  const first = await api.call<{ runs: { offset: number; length: number; kind: string }[]; next: number }>(
    "/v1/volumes/v/map?limit=1",
  );
  assert.equal(first.body.runs.length, 1);
  assert.deepEqual([first.body.runs[0].offset, first.body.runs[0].kind], [0, "remote"]);
  let end = first.body.runs[0].length;
  for (let next: number | null = first.body.next; next !== null;) {
    assert.equal(next, end);
    const page: typeof first = await api.call(`/v1/volumes/v/map?limit=1&offset=${next}`);
    end += page.body.runs[0].length;
    next = page.body.next;
  }
  assert.equal(end, 2 ** 20);
});

void test("reopening a healthy volume changes nothing", async (t) => {
  const api = await startApi(t);
  await api.call("/v1/volumes", create({ name: "v", size: 4096 }));
  const { status, body } = await api.call<VolumeView>("/v1/volumes/v/reopen", { method: "POST", body: {} });
  assert.deepEqual([status, body.state], [200, "ok"]);
});

void test("the socket is for its owner only; a stale one is replaced, a live one is not", async (t) => {
  const api = await startApi(t);
  assert.equal((await stat(api.socketPath)).mode & 0o777, 0o600);
  const address = { kind: "unix", path: api.socketPath } as const;
  await assert.rejects(
    ApiListener.listen(address, () => undefined),
    { code: "listen-in-use" },
  );
  assert.equal((await api.call("/v1/health")).status, 200);
  await rm(api.socketPath);
});

void test("OpenAPI 3.1 describes every path with the schemas that are checked", async (t) => {
  const api = await startApi(t);
  interface OpenApi {
    openapi: string;
    paths: Record<string, Record<string, { operationId: string }>>;
    components: { schemas: Record<string, { additionalProperties: boolean }> };
  }
  const { body } = await api.call<OpenApi>("/openapi.json");
  assert.equal(body.openapi, "3.1.0");
  assert.deepEqual(Object.keys(body.paths).sort(), [
    "/metrics",
    "/v1/blobs",
    "/v1/blobs/{id}",
    "/v1/blobs/{id}/pin",
    "/v1/cache",
    "/v1/cache/evict",
    "/v1/events",
    "/v1/exports",
    "/v1/exports/{name}",
    "/v1/health",
    "/v1/images",
    "/v1/images/{id}",
    "/v1/images/{id}/trace",
    "/v1/images/{id}/trace/replay",
    "/v1/jobs",
    "/v1/jobs/{id}",
    "/v1/reclaim",
    "/v1/snapshots",
    "/v1/sources/limits",
    "/v1/space",
    "/v1/stats",
    "/v1/tokens",
    "/v1/tokens/{name}",
    "/v1/traffic",
    "/v1/volumes",
    "/v1/volumes/{name}",
    "/v1/volumes/{name}/connections",
    "/v1/volumes/{name}/content",
    "/v1/volumes/{name}/exports",
    "/v1/volumes/{name}/hydration",
    "/v1/volumes/{name}/map",
    "/v1/volumes/{name}/reopen",
    "/v1/volumes/{name}/revert",
    "/v1/volumes/{name}/snapshots",
    "/v1/volumes/{name}/snapshots/{snapshot}",
    "/v1/volumes/{name}/snapshots/{snapshot}/content",
    "/v1/volumes/{name}/snapshots/{snapshot}/diff",
    "/v1/volumes/{name}/space",
    "/v1/volumes/{name}/trace",
  ]);
  assert.equal(body.components.schemas["VolumeCreate"].additionalProperties, false);
  const references = JSON.stringify(body).match(/"\$ref":"[^"]*"/g)!;
  for (const reference of new Set(references)) {
    const name = /#\/components\/schemas\/(\w+)"$/.exec(reference)?.[1];
    assert.ok(name !== undefined && name in body.components.schemas, reference);
  }
});

void test("health and stats tell how the process is", async (t) => {
  const api = await startApi(t);
  await api.call("/v1/volumes", create({ name: "v", size: 4096 }));
  const { body: health } = await api.call<{ status: string; pid: number }>("/v1/health");
  assert.deepEqual([health.status, health.pid], ["ok", process.pid]);
  const { body: stats } = await api.call<{ volumes: object; eventLoopDelay: Record<string, number> }>("/v1/stats");
  assert.deepEqual(stats.volumes, { known: 1, open: 0 });
  assert.deepEqual(Object.keys(stats.eventLoopDelay), ["p50Ms", "p99Ms", "maxMs"]);
});
