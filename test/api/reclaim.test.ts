import assert from "node:assert/strict";
import { test } from "node:test";
import type { JobObject } from "../../src/api/job-object.ts";
import { startApi } from "./support.ts";

void test("POST /v1/reclaim is a job whose result says what was freed; one runs at a time", async (t) => {
  const api = await startApi(t);
  await api.call("/v1/volumes", { method: "POST", body: { name: "v", size: 1 << 20 } });
  await api.call("/v1/volumes/v/snapshots", { method: "POST", body: { name: "s" } });
  const [{ status, headers, body }, again] = await Promise.all([
    api.call<JobObject>("/v1/reclaim", { method: "POST" }),
    api.call<JobObject>("/v1/reclaim", { method: "POST" }),
  ]);
  assert.deepEqual([status, headers["location"]], [202, `/v1/jobs/${body.id}`]);
  assert.deepEqual([body.kind, body.target, body.state, body.progress.unit], ["reclaim", null, "running", "layers"]);
  assert.equal(again.status, 202);
  let job = body;
  for (let turn = 0; turn < 500 && job.state === "running"; turn++) {
    await new Promise((resolve) => setTimeout(resolve, 20));
    job = (await api.call<JobObject>(`/v1/jobs/${body.id}`)).body;
  }
  assert.deepEqual([job.state, job.error], ["done", null]);
  assert.deepEqual(job.result, { reclaimedBytes: 0, layers: 1, leftAlone: 0, reasons: [] });
});
