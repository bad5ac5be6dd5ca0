import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import type { ExportView, VolumeView } from "../../src/daemon/views.ts";
import { openUllage } from "../daemon/support.ts";
import { startApi, type TestApi } from "./support.ts";

interface ExportList {
  exports: ExportView[];
  next: string | null;
}

const post = (
  body: unknown,
  headers: Record<string, string> = {},
): { method: string; body: unknown; headers: Record<string, string> } => ({
  method: "POST",
  body,
  headers,
});

async function names(api: TestApi, path = "/v1/exports"): Promise<string[]> {
  const { body } = await api.call<ExportList>(path);
  return body.exports.map(({ name, implicit }) => (implicit ? name : `+${name}`));
}

/** A volume `web` with a snapshot `s`, and a volume `other`. */
async function world(api: TestApi): Promise<void> {
  for (const name of ["web", "other"]) await api.call("/v1/volumes", post({ name, size: 4096 }));
  await api.call("/v1/volumes/web/snapshots", post({ name: "s" }));
}

void test("volumes and snapshots are exports by themselves, others are added, and each says where it is", async (t) => {
  const api = await startApi(t);
  await world(api);
  const socket = join(api.ullage.health().dataDirectory, "nbd.sock");
  await api.ullage.serveNbd([
    { kind: "unix", path: socket },
    { kind: "tcp", host: "127.0.0.1", port: 0 },
  ]);
  const added = await api.call<ExportView>(
    "/v1/exports",
    post({ name: "boot", target: "web", readOnly: true, description: "for the lab" }),
  );
  assert.deepEqual([added.status, added.headers["location"]], [201, "/v1/exports/boot"]);
  const [unix, tcp] = api.ullage.health().listeners.map(({ uri }) => uri!);
  assert.deepEqual(added.body.uris, [`nbd+unix:///boot?socket=${socket}`, `${tcp}boot`]);
  assert.ok(unix.endsWith(socket));
  const { id, createdAt, uris, ...rest } = added.body;
  assert.match(id, /^[0-9a-f]{32}$/);
  assert.equal(new Date(createdAt).toISOString(), createdAt);
  assert.equal(uris.length, 2);
  assert.deepEqual(rest, {
    name: "boot",
    protocol: "nbd",
    volume: "web",
    snapshot: null,
    readOnly: true,
    description: "for the lab",
    implicit: false,
  });
  await api.call("/v1/exports", post({ name: "then", target: "web@s" }));
  assert.deepEqual(await names(api), ["+boot", "other", "+then", "web", "web@s"]);
  assert.deepEqual(await names(api, "/v1/volumes/web/exports"), ["+boot", "+then", "web", "web@s"]);
  assert.deepEqual((await api.call<ExportView>("/v1/exports/boot")).body, added.body);
  const { body: own } = await api.call<ExportView>("/v1/exports/web@s");
  assert.deepEqual([own.implicit, own.readOnly, own.volume, own.snapshot], [true, true, "web", "s"]);
  assert.equal(own.uris[1], `${tcp}web@s`);
  const { body: then } = await api.call<ExportView>("/v1/exports/then");
  assert.deepEqual([then.readOnly, then.snapshot], [true, "s"], "a snapshot is read-only under every name");
});

void test("lists of exports go on where `next` says", async (t) => {
  const api = await startApi(t);
  await world(api);
  await api.call("/v1/exports", post({ name: "boot", target: "web" }));
  for (const path of ["/v1/exports", "/v1/volumes/web/exports"]) {
    const all = await names(api, path);
    const found: string[] = [];
    for (let cursor: string | null = ""; cursor !== null;) {
      const more: string = cursor === "" ? "" : `&cursor=${cursor}`;
      const { body }: { body: ExportList } = await api.call<ExportList>(`${path}?limit=1${more}`);
      found.push(...body.exports.map(({ name, implicit }) => (implicit ? name : `+${name}`)));
      cursor = body.next;
    }
    assert.deepEqual(found, all, path);
  }
});

void test("a name belongs to one volume or export, whoever comes first", async (t) => {
  const api = await startApi(t);
  await world(api);
  await api.call("/v1/exports", post({ name: "boot", target: "web" }));
  const taken = async (path: string, method: string, body: object): Promise<void> => {
    const problem = await api.refused(path, { method, body });
    assert.deepEqual([problem.status, problem.code], [409, "name-taken"], `${method} ${path}`);
    assert.match(problem.detail, /there is an? (volume|export) '(boot|other)' already/);
  };
  await taken("/v1/exports", "POST", { name: "boot", target: "web" });
  await taken("/v1/exports", "POST", { name: "other", target: "web" });
  await taken("/v1/volumes", "POST", { name: "boot", size: 4096 });
  await taken("/v1/volumes/other", "PATCH", { name: "boot" });
  assert.deepEqual(await names(api), ["+boot", "other", "web", "web@s"]);

  // At once: one wins, whichever begins, and the list has the name once.
  const codeOf = (work: Promise<unknown>): Promise<string> =>
    work.then(
      () => "done",
      (error: { code: string }) => error.code,
    );
  const { ullage } = api;
  for (let round = 0; round < 6; round++) {
    const name = `both${round}`;
    const makers = [
      () => ullage.createVolume({ name, size: 4096 }),
      () => ullage.addExport({ name, target: "web" }),
      () => ullage.changeVolume("other", { name }).then(() => ullage.changeVolume(name, { name: "other" })),
    ];
    const order = [...makers.slice(round % 3), ...makers.slice(0, round % 3)];
    const running: Promise<string>[] = [];
    for (const make of order) {
      running.push(codeOf(make()));
      await Promise.resolve(); // so far that the first has its name
    }
    const codes = await Promise.all(running);
    assert.deepEqual(codes.toSorted(), ["done", "name-taken", "name-taken"], `round ${round}`);
    assert.ok((await names(api)).filter((found) => found.endsWith(name)).length <= 1);
  }
});

void test("an export follows its volume's name and goes with what it stands for; its name is free then", async (t) => {
  const api = await startApi(t);
  await world(api);
  for (const [name, target] of Object.entries({ boot: "web", before: "web@s", mail: "other" })) {
    await api.call("/v1/exports", post({ name, target }));
  }
  await api.call("/v1/volumes/web", { method: "PATCH", body: { name: "www" } });
  const { body: boot } = await api.call<ExportView>("/v1/exports/boot");
  assert.equal(boot.volume, "www");
  await api.call("/v1/volumes/www/snapshots/s", { method: "DELETE" });
  assert.deepEqual(await names(api), ["+boot", "+mail", "other", "www"]);
  await api.call("/v1/volumes/www", { method: "DELETE" });
  assert.deepEqual(await names(api), ["+mail", "other"]);
  assert.equal((await api.call("/v1/volumes", post({ name: "boot", size: 4096 }))).status, 201);
  assert.equal((await api.call("/v1/exports/mail", { method: "DELETE" })).status, 204);
  assert.deepEqual(await names(api), ["boot", "other"]);
});

void test("an export of a snapshot goes when the snapshot only lives on for a clone", async (t) => {
  const api = await startApi(t);
  await world(api);
  await api.call("/v1/volumes", post({ name: "clone", from: { snapshot: "web@s" } }));
  await api.call("/v1/exports", post({ name: "then", target: "web@s" }));
  await api.call("/v1/volumes/web/snapshots/s", { method: "DELETE" });
  assert.deepEqual(await names(api), ["clone", "other", "web"]);
  assert.equal((await api.call("/v1/exports", post({ name: "then", target: "web" }))).status, 201, "the name is free");
});

void test("exports are there after a restart", async (t) => {
  const api = await startApi(t);
  await world(api);
  await api.call("/v1/exports", post({ name: "boot", target: "web", readOnly: true, description: "x" }));
  await api.call("/v1/exports", post({ name: "then", target: "web@s" }));
  const before = api.ullage.listExports();
  const { dataDirectory } = api.ullage.health();
  await api.ullage.close();
  const again = await openUllage(t, { dataDir: dataDirectory });
  assert.deepEqual(again.listExports(), before);
});

void test("a repeated request with the same key adds one export, and a key is for one request only", async (t) => {
  const api = await startApi(t);
  await world(api);
  const key = { "idempotency-key": "k" };
  const body = { name: "boot", target: "web" };
  const [first, second] = await Promise.all([
    api.call<ExportView>("/v1/exports", post(body, key)),
    api.call<ExportView>("/v1/exports", post(body, key)),
  ]);
  assert.deepEqual([first.status, second.status], [201, 201]);
  assert.deepEqual(first.body, second.body);
  const problem = await api.refused("/v1/exports", post({ ...body, name: "other2" }, key));
  assert.deepEqual([problem.status, problem.code], [422, "request-key-reused"]);
  assert.deepEqual(await names(api), ["+boot", "other", "web", "web@s"]);
});

void test("what makes no sense is refused with a reason, and changes nothing", async (t) => {
  const api = await startApi(t);
  await world(api);
  await api.call("/v1/exports", post({ name: "boot", target: "web" }));
  const before = await names(api);
  const cases: [string, string, unknown, number, string][] = [
    ["POST", "/v1/exports", undefined, 400, "bad-request"],
    ["POST", "/v1/exports", "{", 400, "bad-request"],
    ["POST", "/v1/exports", [], 400, "bad-request"],
    ["POST", "/v1/exports", { name: "x" }, 400, "bad-request"],
    ["POST", "/v1/exports", { target: "web" }, 400, "bad-request"],
    ["POST", "/v1/exports", { name: 7, target: "web" }, 400, "bad-request"],
    ["POST", "/v1/exports", { name: "x", target: 7 }, 400, "bad-request"],
    ["POST", "/v1/exports", { name: "x", target: "web", readOnly: "yes" }, 400, "bad-request"],
    ["POST", "/v1/exports", { name: "x", target: "web", description: "x".repeat(257) }, 400, "bad-request"],
    ["POST", "/v1/exports", { name: "x", target: "web", colour: "red" }, 400, "bad-request"],
    ["POST", "/v1/exports", { name: "x@y", target: "web" }, 400, "bad-request"],
    ["POST", "/v1/exports", { name: "", target: "web" }, 400, "bad-request"],
    ["POST", "/v1/exports", { name: "x".repeat(129), target: "web" }, 400, "bad-request"],
    ["POST", "/v1/exports", { name: "x", target: "nothing" }, 404, "not-found"],
    ["POST", "/v1/exports", { name: "x", target: "web@nothing" }, 404, "not-found"],
    ["POST", "/v1/exports", { name: "x", target: "" }, 404, "not-found"],
    ["POST", "/v1/exports", { name: "x", target: "boot" }, 404, "not-found"],
    ["GET", "/v1/exports/nothing", undefined, 404, "not-found"],
    ["GET", "/v1/exports?limit=0", undefined, 400, "bad-request"],
    ["GET", "/v1/exports?limit=many", undefined, 400, "bad-request"],
    ["GET", "/v1/exports?cursor=%25", undefined, 400, "bad-cursor"],
    ["GET", "/v1/exports?colour=red", undefined, 400, "bad-request"],
    ["GET", "/v1/volumes/nothing/exports", undefined, 404, "not-found"],
    ["DELETE", "/v1/exports/nothing", undefined, 404, "not-found"],
    ["DELETE", "/v1/exports/web", undefined, 409, "own-name"],
    ["DELETE", "/v1/exports/web@s", undefined, 409, "own-name"],
  ];
  for (const [method, path, body, status, code] of cases) {
    const problem = await api.refused(path, { method, ...(body === undefined ? {} : { body }) });
    const what = `${method} ${path} ${JSON.stringify(body)}: ${problem.detail}`;
    assert.deepEqual([problem.status, problem.code], [status, code], what);
    assert.ok(problem.detail.length > 10, what);
  }
  assert.deepEqual(await names(api), before);
});

void test("a clone tells what it began as, through renames and after the origin has gone", async (t) => {
  const api = await startApi(t);
  await world(api);
  await api.call("/v1/volumes", post({ name: "c1", from: { snapshot: "web@s" } }));
  await api.call("/v1/volumes", post({ name: "c2", from: { volume: "web" } }));
  const origins = async (): Promise<unknown[]> =>
    Promise.all(
      ["c1", "c2", "web"].map(async (name) => (await api.call<VolumeView>(`/v1/volumes/${name}`)).body.origin),
    );
  assert.deepEqual(await origins(), [
    { volume: "web", snapshot: "s", removed: false },
    { volume: "web", snapshot: null, removed: false },
    null,
  ]);
  await api.call("/v1/volumes/web", { method: "PATCH", body: { name: "www" } });
  await api.call("/v1/volumes/www/snapshots/s", { method: "DELETE" });
  assert.deepEqual((await origins()).slice(0, 2), [
    { volume: "www", snapshot: "s", removed: true },
    { volume: "www", snapshot: null, removed: false },
  ]);
  await api.call("/v1/volumes/www", { method: "DELETE" });
  const { dataDirectory } = api.ullage.health();
  await api.ullage.close();
  const again = await openUllage(t, { dataDir: dataDirectory });
  assert.deepEqual(
    (await again.listVolumes()).map(({ name, origin }) => [name, origin]),
    [
      ["c1", { volume: "web", snapshot: "s", removed: true }],
      ["c2", { volume: "web", snapshot: null, removed: true }],
      ["other", null],
    ],
  );
});
