import assert from "node:assert/strict";
import { test } from "node:test";
import type { SnapshotView } from "../../src/daemon/views.ts";
import { requireTool } from "../support/tools.ts";
import { startApi } from "./support.ts";
import { json, refusal, startTcpApi } from "./tcp-support.ts";

const key = { "idempotency-key": "k" };

void test("a snapshot is taken once per key, however often it is asked for, and is told of once", async (t) => {
  const api = await startApi(t);
  for (const name of ["v", "w"]) await api.call("/v1/volumes", { method: "POST", body: { name, size: 4096 } });
  const told: string[] = [];
  let position = api.ullage.events.end;
  const ask = (name: string, volume = "v"): Parameters<typeof api.call> => [
    `/v1/volumes/${volume}/snapshots`,
    { method: "POST", body: { name }, headers: key },
  ];
  const answers = await Promise.all([1, 2, 3].map(() => api.call<SnapshotView>(...ask("s"))));
  answers.push(await api.call<SnapshotView>(...ask("s")));
  assert.deepEqual(new Set(answers.map(({ status }) => status)), new Set([201]));
  assert.equal(new Set(answers.map(({ body }) => body.id)).size, 1);
  for (;;) {
    const events = api.ullage.events.read(position, 100);
    if (events.length === 0) break;
    position += events.length;
    told.push(...events.map(({ name }) => name).filter((name) => name.startsWith("snapshot-")));
  }
  assert.deepEqual(told, ["snapshot-created"]);
  assert.equal((await api.refused(...ask("t"))).code, "request-key-reused");
  assert.equal((await api.refused(...ask("s", "w"))).code, "request-key-reused");
  const [path, call] = ask("s");
  assert.equal((await api.refused(path, { ...call, headers: {} })).code, "name-taken");
  await api.ullage.removeSnapshot("v", "s");
  assert.notEqual((await api.call<SnapshotView>(...ask("s"))).body.id, answers[0].body.id);
});

void test("a snapshot that only a clone needs any more has given its key up", async (t) => {
  const api = await startApi(t);
  await api.call("/v1/volumes", { method: "POST", body: { name: "v", size: 4096 } });
  const ask = { method: "POST", body: { name: "s" }, headers: key };
  const first = await api.call<SnapshotView>("/v1/volumes/v/snapshots", ask);
  await api.call("/v1/volumes", { method: "POST", body: { name: "c", from: { snapshot: "v@s" } } });
  await api.ullage.removeSnapshot("v", "s");
  const second = await api.call<SnapshotView>("/v1/volumes/v/snapshots", ask);
  assert.equal(second.status, 201);
  assert.notEqual(second.body.id, first.body.id);
});

void test("a token is made once per key, and who asks again is told how to get another", async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startTcpApi(t);
  const ask = (name: string, scope: string): ReturnType<typeof api.as> =>
    api.as("admin", "/v1/tokens", "-H", "Idempotency-Key: k", ...json("POST", { name, scope }));
  assert.equal((await ask("ci", "read")).status, 201);
  const again = await ask("ci", "read");
  assert.equal(refusal(again), "409 secret-told");
  assert.match(again.text, /"hint":"[^"]*token rm ci/);
  assert.equal(refusal(await ask("ci", "admin")), "422 request-key-reused");
  assert.equal(api.tokens.list().filter(({ name }) => name === "ci").length, 1);
});
