import assert from "node:assert/strict";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import type { JobObject } from "../../src/api/job-object.ts";
import type { Clock } from "../../src/base/clock.ts";
import { UllageError } from "../../src/base/errors.ts";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { Jobs, type JobView } from "../../src/daemon/jobs.ts";
import type { VolumeView } from "../../src/daemon/views.ts";
import { startHttpSource, type HttpSource, type HttpSourceOptions } from "../support/http-source.ts";
import { atEnd } from "../daemon/support.ts";
import { EventClient } from "./event-client.ts";
import { requireTool } from "../support/tools.ts";
import { startApi, type Answer, type TestApi } from "./support.ts";
import { curl, refusal, startTcpApi } from "./tcp-support.ts";

const content = Buffer.alloc(2_000_000, "image");

/** A server that can't serve ranges. */
async function startStreamingSource(t: TestContext, options: Partial<HttpSourceOptions> = {}): Promise<HttpSource> {
  const source = await startHttpSource({ content, ...options });
  source.onRequest = () => ({ kind: "ignore-range" });
  atEnd(t, () => source.close());
  return source;
}

/** One that stops half-way until it is let go on; used as an answer to every whole request. */
function stall(source: HttpSource): void {
  source.onRequest = ({ ranged }) => (ranged ? { kind: "ignore-range" } : { kind: "stall", after: 1_000_000 });
}

const create = (source: string, name = "v", more: object = {}): { method: string; body: object } => ({
  method: "POST",
  body: { name, from: { source, download: true, ...more } },
});

async function ended(api: TestApi, id: string): Promise<JobObject> {
  for (;;) {
    const { body } = await api.call<JobObject>(`/v1/jobs/${id}`);
    if (body.state !== "running") return body;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

/** Resolves when bytes have arrived. */
async function downloading(api: TestApi, id: string): Promise<void> {
  for (;;) {
    const { body } = await api.call<JobObject>(`/v1/jobs/${id}`);
    assert.equal(body.state, "running", JSON.stringify(body.error));
    if (body.progress.done > 0) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

const below = (api: TestApi, name: string): Promise<string[]> => readdir(join(api.ullage.health().dataDirectory, name));

void test("a download is answered with a job, whose result is the volume", async (t) => {
  const api = await startApi(t);
  const source = await startStreamingSource(t);
  const accepted = await api.call<JobObject>("/v1/volumes", create(source.url));
  const { id } = accepted.body;
  assert.equal(accepted.status, 202);
  assert.equal(accepted.headers["location"], `/v1/jobs/${id}`);
  assert.deepEqual(accepted.body, {
    id,
    kind: "volume-create",
    target: "v",
    state: "running",
    progress: { done: 0, total: content.length, unit: "bytes" },
    result: null,
    error: null,
    createdAt: accepted.body.createdAt,
    endedAt: null,
  });
  const job = await ended(api, id);
  assert.deepEqual([job.state, job.error], ["done", null]);
  assert.deepEqual(job.progress, { done: content.length, total: content.length, unit: "bytes" });
  assert.ok(job.endedAt! >= job.createdAt);
  const { body } = await api.call<VolumeView>("/v1/volumes/v");
  const made = job.result as VolumeView;
  assert.deepEqual([made.id, made.state, made.fetchedBytes], [body.id, "ok", content.length]);
  assert.deepEqual((await api.call("/v1/jobs")).body, { jobs: [job], next: null });
});

void test("an image that is here already needs no job", async (t) => {
  const api = await startApi(t);
  const source = await startStreamingSource(t);
  await ended(api, (await api.call<JobObject>("/v1/volumes", create(source.url))).body.id);
  const again = await api.call<VolumeView>("/v1/volumes", create(source.url, "w"));
  assert.deepEqual([again.status, again.body.name, again.body.state], [201, "w", "ok"]);
});

void test("what is wrong with a request is said at once, not by a job", async (t) => {
  const api = await startApi(t);
  const source = await startStreamingSource(t);
  await api.call("/v1/volumes", { method: "POST", body: { name: "taken", size: 4096 } });
  const cases: [ReturnType<typeof create>, number, string][] = [
    [create(source.url, "taken"), 409, "name-taken"],
    [create(`${source.url}x`), 422, "source-not-found"],
    [create(source.url, "v", { format: "zap" }), 422, "format-unknown"],
    [{ method: "POST", body: { ...create(source.url).body, size: 512 } }, 400, "bad-size"],
  ];
  source.onRequest = ({ path }) => (path === "/disk.img" ? { kind: "ignore-range" } : undefined);
  for (const [request, status, code] of cases) {
    const refused = await api.refused("/v1/volumes", request);
    assert.deepEqual([refused.status, refused.code], [status, code], refused.detail);
  }
  assert.deepEqual((await api.call<{ jobs: JobObject[] }>("/v1/jobs")).body.jobs, []);
  assert.deepEqual([(await api.ullage.listVolumes()).length, await below(api, "blobs")], [1, []]);
});

void test("cancelling a download removes everything that it made", async (t) => {
  const api = await startApi(t);
  const source = await startStreamingSource(t);
  stall(source);
  const { id } = (await api.call<JobObject>("/v1/volumes", create(source.url))).body;
  await downloading(api, id);
  assert.equal((await api.call<VolumeView>("/v1/volumes/v")).body.state, "creating");

  const cancelled = await api.call<JobObject>(`/v1/jobs/${id}`, { method: "DELETE" });
  const { state, result, error, progress } = cancelled.body;
  assert.deepEqual([cancelled.status, state, result, error], [200, "cancelled", null, null]);
  assert.ok(progress.done > 0 && progress.done < content.length);
  assert.equal((await api.refused("/v1/volumes/v")).code, "not-found");
  for (const directory of ["blobs", "volumes", "layers"]) assert.deepEqual(await below(api, directory), [], directory);
  assert.equal(source.connections, 0);

  assert.deepEqual((await api.call(`/v1/jobs/${id}`, { method: "DELETE" })).body, cancelled.body, "again");
  await startAgain(api, source);
});

/** The name and the image are free for another try. */
async function startAgain(api: TestApi, source: HttpSource): Promise<void> {
  source.onRequest = () => ({ kind: "ignore-range" });
  const { body } = await api.call<JobObject>("/v1/volumes", create(source.url));
  assert.equal((await ended(api, body.id)).state, "done");
}

void test("a creation ends with its signal, at any time", async (t) => {
  const api = await startApi(t);
  const source = await startStreamingSource(t);
  stall(source);
  const reason = new Error("no longer wanted");
  for (const at of ["before", "meanwhile"]) {
    const controller = new AbortController();
    const onDownload = (bytes: number): void => {
      if (bytes > 0) controller.abort(reason);
    };
    if (at === "before") controller.abort(reason);
    const from = { source: source.url, download: true };
    const making = api.ullage.createVolume({ name: "v", from }, undefined, { signal: controller.signal, onDownload });
    await assert.rejects(making, reason);
    assert.deepEqual([await api.ullage.listVolumes(), await below(api, "blobs")], [[], []]);
  }
});

void test("of two volumes from one image, cancelling one leaves the other its cache", async (t) => {
  const api = await startApi(t);
  const source = await startStreamingSource(t, { bytesPerSecond: 4_000_000 });
  const jobs = await Promise.all(
    ["a", "b"].map((name) => api.call<JobObject>("/v1/volumes", create(source.url, name))),
  );
  const [a, b] = jobs.map(({ body }) => body.id);
  const cancelled = (await api.call<JobObject>(`/v1/jobs/${a}`, { method: "DELETE" })).body;
  assert.ok(["cancelled", "done"].includes(cancelled.state));
  const other = await ended(api, b);
  assert.deepEqual([other.state, other.error], ["done", null]);
  const device = await api.ullage.getDevice("b");
  const buffer = new IoBuffer(5);
  await device.read(1_500_000, 5, buffer, 0);
  assert.equal(buffer.bytes.toString(), "image");
});

void test("a download that fails ends its job with the problem, and leaves nothing", async (t) => {
  const api = await startApi(t);
  const source = await startStreamingSource(t);
  source.onRequest = ({ ranged }) => (ranged ? { kind: "ignore-range" } : { kind: "status", status: 404 });
  const job = await ended(api, (await api.call<JobObject>("/v1/volumes", create(source.url))).body.id);
  assert.deepEqual(
    [job.state, job.result, job.error!.status, job.error!.code],
    ["failed", null, 422, "source-not-found"],
  );
  assert.match(job.error!.detail, /answered 404/);
  assert.equal((await api.refused("/v1/volumes/v")).code, "not-found");
  for (const directory of ["blobs", "volumes", "layers"]) assert.deepEqual(await below(api, directory), [], directory);
  await startAgain(api, source);
});

void test("a request that is repeated with its key gets the job that it began", async (t) => {
  const api = await startApi(t);
  const source = await startStreamingSource(t);
  stall(source);
  const keyed = { ...create(source.url), headers: { "idempotency-key": "k1" } };
  const answers = await Promise.all([1, 2, 3].map(() => api.call<JobObject>("/v1/volumes", keyed)));
  const later = await api.call<JobObject>("/v1/volumes", keyed);
  const { id } = answers[0].body;
  for (const { status, body } of [...answers, later]) assert.deepEqual([status, body.id], [202, id]);
  const other = await api.refused("/v1/volumes", { ...keyed, ...create(source.url, "w") });
  assert.deepEqual([other.status, other.code], [422, "request-key-reused"]);
  await api.call(`/v1/jobs/${id}`, { method: "DELETE" });

  source.onRequest = () => ({ kind: "ignore-range" });
  const anew = await api.call<JobObject>("/v1/volumes", keyed);
  assert.notEqual(anew.body.id, id);
  const made = await ended(api, anew.body.id);
  const done: Answer<VolumeView> = await api.call<VolumeView>("/v1/volumes", keyed);
  assert.deepEqual([done.status, done.body.id], [201, (made.result as VolumeView).id]);
});

void test("whoever listens hears of jobs", async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startApi(t);
  const source = await startStreamingSource(t);
  const client = await EventClient.connect(t, api.socketPath);
  const { body } = await api.call<JobObject>("/v1/volumes", create(source.url));
  const begun = await client.next("job");
  assert.deepEqual(begun.data, body);
  const done = await client.next(({ name, data }) => name === "job" && data["state"] === "done");
  assert.deepEqual(done.data, (await api.call(`/v1/jobs/${body.id}`)).body);

  source.replace(Buffer.alloc(3_000_000));
  source.etag = '"other"';
  source.onRequest = ({ ranged }) => (ranged ? { kind: "ignore-range" } : { kind: "status", status: 404 });
  await api.call("/v1/volumes", create(source.url, "w"));
  const failed = await client.next(({ name, data }) => name === "job" && data["state"] === "failed");
  assert.equal((failed.data["error"] as { code: string }).code, "source-not-found");
});

void test("over TCP a token that may only look sees jobs and events, and cancels nothing", async (t) => {
  if (!requireTool(t, "curl")) return;
  const source = await startStreamingSource(t);
  stall(source);
  const api = await startTcpApi(t);
  const from = { source: source.url, download: true };
  const made = await api.ullage.createVolumeOrJob({ name: "v", from });
  assert.ok(made.kind === "job");
  const { id } = made.job;
  assert.equal((JSON.parse((await api.as("read", `/v1/jobs/${id}`)).text) as JobObject).state, "running");
  assert.equal(refusal(await api.as("read", `/v1/jobs/${id}`, "-X", "DELETE")), "403 forbidden");
  assert.equal(api.ullage.jobs.get(id).state, "running");
  const cancelled = await api.as("write", `/v1/jobs/${id}`, "-X", "DELETE");
  assert.equal((JSON.parse(cancelled.text) as JobObject).state, "cancelled");
  for (const path of ["/v1/jobs", "/v1/events"]) {
    assert.equal(refusal(await curl(`${api.origin}${path}`)), "401 no-token", path);
  }
  api.ullage.events.close(); // a stream ends where the events do, and curl with it
  const heard = await api.as("read", "/v1/events");
  assert.deepEqual([heard.status, heard.headers["content-type"]], [200, "text/event-stream; charset=utf-8"]);
  assert.match(heard.text, /^retry: \d+\nid: [0-9a-f]{8}-\d+\n\n/);
});

void test("there is no job by another id", async (t) => {
  const api = await startApi(t);
  for (const method of ["GET", "DELETE"]) {
    const refused = await api.refused("/v1/jobs/0123", { method });
    assert.deepEqual([refused.status, refused.code], [404, "not-found"]);
  }
});

void test("a stop ends a download, and the next start knows nothing of it", async (t) => {
  const api = await startApi(t);
  const source = await startStreamingSource(t);
  stall(source);
  const { id } = (await api.call<JobObject>("/v1/volumes", create(source.url))).body;
  await downloading(api, id);
  await api.ullage.close();
  const { state, error } = api.ullage.jobs.get(id);
  assert.deepEqual([state, (error as UllageError).code], ["failed", "stopping"]);
  for (const directory of ["blobs", "volumes"]) assert.deepEqual(await below(api, directory), [], directory);
});

// ---- their limits ----------------------------------------------------------------------------------------------------

interface Work {
  controller: AbortController;
  end(): void;
}

function begin(jobs: Jobs): { view: JobView; progress: (done: number) => void } & Work {
  const { promise, resolve, reject } = Promise.withResolvers<VolumeView>();
  const controller = new AbortController();
  controller.signal.addEventListener("abort", () => reject(controller.signal.reason as Error));
  const about = { kind: "volume-create", target: "v", progress: { done: 0, total: 10, unit: "bytes" } } as const;
  return { ...jobs.start(about, controller, promise), controller, end: () => resolve({} as VolumeView) };
}

void test("only so many jobs run at once, and ended ones are forgotten in time", async () => {
  let now = 0;
  const clock: Clock = { now: () => now, wallTime: () => String(now), sleep: () => Promise.resolve() };
  const jobs = new Jobs(clock, () => undefined);
  const running = Array.from({ length: 16 }, () => begin(jobs));
  assert.throws(() => begin(jobs), { code: "too-many-jobs" });
  assert.equal((await jobs.cancel(running[0].view.id)).state, "cancelled");
  for (let n = 0; n < 150; n++) {
    now++;
    const job = begin(jobs);
    job.end();
    await jobs.cancel(job.view.id); // ends it, one way or the other
  }
  const states = jobs.list().map(({ state }) => state);
  assert.equal(states.filter((state) => state === "running").length, 15);
  assert.equal(states.length, 115);
  assert.throws(() => jobs.get(running[0].view.id), { code: "not-found" });
  now += 25 * 3600_000;
  assert.equal(jobs.list().length, 15);
});

void test("progress of a job is told now and then", () => {
  let now = 0;
  const told: number[] = [];
  const clock: Clock = { now: () => now, wallTime: () => "", sleep: () => Promise.resolve() };
  const jobs = new Jobs(clock, ({ progress }) => told.push(progress.done));
  const { view, progress } = begin(jobs);
  for (let done = 1; done <= 10; done++) {
    now += 100;
    progress(done);
  }
  assert.deepEqual(told, [0, 5, 10]);
  assert.equal(jobs.get(view.id).progress.done, 10);
});
