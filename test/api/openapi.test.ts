import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { promisify } from "node:util";
import { Validator } from "@seriousme/openapi-schema-validator";
import { Ajv2020 } from "ajv/dist/2020.js";
import addFormats from "ajv-formats";
import type { JobObject } from "../../src/api/job-object.ts";
import type { BlobView, ImageView } from "../../src/daemon/views.ts";
import { temporaryDirectory } from "../daemon/support.ts";
import { startHttpSource } from "../support/http-source.ts";
import { requireTool } from "../support/tools.ts";
import { startTcpApi } from "./tcp-support.ts";
import { startApi, type Answer } from "./support.ts";

/*
 * The OpenAPI document as others use it: a validator and a generator of clients that are not ours read it, and everything
 * that a live server answers is compared with what the document says of that answer.
 */

const execute = promisify(execFile);
const root = join(import.meta.dirname, "../..");

interface Response {
  description?: string;
  content?: Record<string, { schema: object }>;
}

interface Operation {
  operationId: string;
  summary: string;
  responses: Record<string, Response>;
}

interface Document {
  openapi: string;
  paths: Record<string, Record<string, Operation>>;
}

/** Operations by id, with method and path. */
function operationsOf(document: Document): Map<string, { method: string; path: string; operation: Operation }> {
  const found = Object.entries(document.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => ({ method: method.toUpperCase(), path, operation })),
  );
  const byId = new Map(found.map((each) => [each.operation.operationId, each] as const));
  assert.equal(byId.size, found.length, "operation ids are there, and unique");
  return byId;
}

void test("the document is valid OpenAPI 3.1 by a validator that is not ours, and tells of every operation what it answers", async (t) => {
  const api = await startApi(t);
  const { body: document } = await api.call<Document>("/openapi.json");
  const { valid, errors } = await new Validator().validate(
    structuredClone(document) as unknown as Record<string, unknown>,
  );
  assert.ok(valid, JSON.stringify(errors));
  for (const [id, { operation }] of operationsOf(document)) {
    assert.match(id, /^[a-z][A-Za-z]+$/);
    assert.ok(operation.summary.length > 5, id);
    const statuses = Object.keys(operation.responses);
    assert.ok(
      statuses.some((status) => /^2\d\d$/.test(status)),
      `${id} succeeds somehow`,
    );
    for (const status of ["4XX", "5XX"]) {
      assert.ok("application/problem+json" in (operation.responses[status]?.content ?? {}), `${id} ${status}`);
    }
    for (const { description } of Object.values(operation.responses)) assert.ok(description, id);
  }
});

interface Step {
  id: string;
  parameters?: Record<string, string>;
  query?: string;
  body?: unknown;
  status: number;
}

void test("whatever a server answers on a walk through all operations is what the document says of it", async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startApi(t);
  await using source = await startHttpSource({ content: Buffer.alloc(2_000_000, 1) });
  const { body: document } = await api.call<Document>("/openapi.json");
  const operations = operationsOf(document);
  const ajv = new Ajv2020({ strict: false, allErrors: true });
  addFormats.default(ajv);
  ajv.addSchema(document, "api");
  const walked = new Set<string>();
  const refused = new Set<string>();

  const demand = (id: string, { status, headers, body }: Answer<unknown>): void => {
    const { path, method, operation } = operations.get(id)!;
    const key = [String(status), `${String(status)[0]}XX`].find((each) => each in operation.responses);
    assert.ok(key !== undefined, `${id} answers ${status}, of which nothing is said`);
    const { content } = operation.responses[key];
    const type = String(headers["content-type"] ?? "").split(";")[0];
    if (content === undefined) {
      assert.deepEqual([body, type], [undefined, ""], id);
      return;
    }
    assert.ok(type in content, `${id} ${status} answers with ${type}`);
    const pointer = ["paths", path, method.toLowerCase(), "responses", key, "content", type, "schema"]
      .map((part) => encodeURIComponent(part.replaceAll("~", "~0").replaceAll("/", "~1")))
      .join("/");
    const validate = ajv.compile({ $ref: `api#/${pointer}` });
    assert.ok(validate(body), `${id} ${status}: ${ajv.errorsText(validate.errors)}: ${JSON.stringify(body)}`);
  };
  const walk = async <T>({ id, parameters = {}, query = "", body, status }: Step): Promise<T> => {
    const found = operations.get(id);
    assert.ok(found !== undefined, `there is no operation ${id}`);
    const path = found.path.replace(/\{(\w+)\}/g, (_, name: string) => encodeURIComponent(parameters[name]));
    const answer = await api.call<T>(`${path}${query}`, {
      method: found.method,
      ...(body === undefined ? {} : { body }),
    });
    assert.equal(answer.status, status, `${id}: ${JSON.stringify(answer.body)}`);
    demand(id, answer);
    (status < 400 ? walked : refused).add(id);
    return answer.body;
  };

  // Everything there is, from an empty server on.
  const v = { name: "v" };
  const s = { name: "v", snapshot: "s" };
  const nothing = { name: "nothing", snapshot: "nothing", id: "nothing" };
  for (const id of [
    "listVolumes",
    "listSnapshots",
    "listExports",
    "listImages",
    "listBlobs",
    "listJobs",
    "listTokens",
  ]) {
    await walk({ id, status: 200 });
  }
  await walk({ id: "createVolume", body: { name: "v", from: { source: source.url } }, status: 201 });
  await walk({ id: "createVolume", body: { name: "empty", size: 4096 }, status: 201 });
  const upload = { method: "PUT", body: "disk", headers: { "content-type": "application/octet-stream" } };
  demand("importVolume", await api.call("/v1/volumes/uploaded/content", upload));
  demand("importVolume", await api.call("/v1/volumes/uploaded/content", upload));
  walked.add("importVolume");
  refused.add("importVolume");
  await walk({ id: "listVolumes", query: "?limit=1", status: 200 });
  await walk({ id: "getVolume", parameters: v, status: 200 });
  await walk({ id: "changeVolume", parameters: v, body: { settings: { sync: "always" } }, status: 200 });
  await walk({ id: "getHydration", parameters: v, status: 200 });
  await walk({
    id: "steerHydration",
    parameters: v,
    body: { limitBytesPerSecond: 1_000_000, priority: 3 },
    status: 200,
  });
  await walk({ id: "getMap", parameters: v, status: 200 });
  await walk({ id: "listConnections", parameters: v, status: 200 });
  await walk({ id: "reopenVolume", parameters: v, body: {}, status: 200 });
  await walk({ id: "getSpace", parameters: v, status: 200 });
  await walk({ id: "createSnapshot", parameters: v, body: { name: "s" }, status: 201 });
  await walk({ id: "listSnapshots", status: 200 });
  await walk({ id: "listVolumeSnapshots", parameters: v, status: 200 });
  await walk({ id: "getSnapshot", parameters: s, status: 200 });
  await walk({ id: "diffSnapshot", parameters: s, status: 200 });
  await walk({ id: "revertVolume", parameters: v, body: { snapshot: "s" }, status: 200 });
  await walk({ id: "createVolume", body: { name: "clone", from: { snapshot: "v@s" } }, status: 201 });
  await walk({ id: "getVolume", parameters: { name: "clone" }, status: 200 });
  await walk({ id: "addExport", body: { name: "x", target: "v", readOnly: true, description: "y" }, status: 201 });
  await walk({ id: "listExports", status: 200 });
  await walk({ id: "getExport", parameters: { name: "v@s" }, status: 200 });
  await walk({ id: "listVolumeExports", parameters: v, status: 200 });
  await walk({ id: "removeExport", parameters: { name: "x" }, status: 204 });
  const { images } = await walk<{ images: ImageView[] }>({ id: "listImages", status: 200 });
  await walk({ id: "getImage", parameters: { id: images[0].id }, status: 200 });
  const { blobs } = await walk<{ blobs: BlobView[] }>({ id: "listBlobs", status: 200 });
  await walk({ id: "getBlob", parameters: { id: blobs[0].id }, status: 200 });
  const blob = { id: blobs[0].id };
  await walk({ id: "pinBlob", parameters: blob, status: 200 });
  await walk({ id: "evict", body: { blob: blob.id }, status: 409 });
  await walk({ id: "unpinBlob", parameters: blob, status: 200 });
  const pull = await walk<JobObject>({ id: "pullImage", body: { source: api.image }, status: 202 });
  while ((await walk<JobObject>({ id: "getJob", parameters: { id: pull.id }, status: 200 })).state === "running");
  const all = await walk<{ images: ImageView[] }>({ id: "listImages", status: 200 });
  const pulled = all.images.find(({ volumes }) => volumes.length === 0)!;
  await walk({ id: "removeImage", parameters: { id: pulled.id }, status: 204 });
  const image = { id: images[0].id };
  await walk({ id: "recordTrace", parameters: v, body: { seconds: 1 }, status: 200 });
  const recordedAt = new Date().toISOString();
  await walk({
    id: "setTrace",
    parameters: image,
    body: { imageBytes: images[0].size, recordedAt, reads: [[0, 0, 4096]] },
    status: 200,
  });
  await walk({ id: "getTrace", parameters: image, status: 200 });
  const replay = await walk<JobObject>({ id: "replayTrace", parameters: image, status: 202 });
  while ((await walk<JobObject>({ id: "getJob", parameters: { id: replay.id }, status: 200 })).state === "running");
  await walk({ id: "getCache", status: 200 });
  await walk({ id: "changeCache", body: { capacityBytes: null, reserve: 0 }, status: 200 });
  await walk({ id: "evict", body: {}, status: 200 });
  await walk({ id: "changeSourceLimits", body: { bytesPerSecond: 50_000_000 }, status: 200 });
  await walk({ id: "getSourceLimits", status: 200 });
  await walk({ id: "getStats", status: 200 });
  await walk({ id: "getAllSpace", status: 200 });
  await walk({ id: "getTraffic", status: 200 });
  await walk({ id: "getHealth", status: 200 });
  await walk({ id: "createToken", body: { name: "t", scope: "read", expiresInSeconds: 60 }, status: 201 });
  await walk({ id: "createToken", body: { name: "u", scope: "admin" }, status: 201 });
  await walk({ id: "listTokens", status: 200 });
  await walk({ id: "removeToken", parameters: { name: "t" }, status: 204 });
  // A job: a source that must be fetched whole, and stalls.
  source.onRequest = ({ ranged }) => (ranged ? { kind: "ignore-range" } : { kind: "stall", after: 1000 });
  const body = { name: "slow", from: { source: `${source.url}?other`, download: true } };
  const job = await walk<JobObject>({ id: "createVolume", body, status: 202 });
  await walk({ id: "getVolume", parameters: { name: "slow" }, status: 200 });
  await walk({ id: "getJob", parameters: { id: job.id }, status: 200 });
  await walk({ id: "listJobs", status: 200 });
  await walk({ id: "cancelJob", parameters: { id: job.id }, status: 200 });
  while ((await walk<JobObject>({ id: "getJob", parameters: { id: job.id }, status: 200 })).state === "running");
  await walk({ id: "removeSnapshot", parameters: s, status: 204 });
  await walk({ id: "removeVolume", parameters: { name: "clone" }, status: 204 });
  const reclaim = await walk<JobObject>({ id: "reclaim", status: 202 });
  while ((await walk<JobObject>({ id: "getJob", parameters: { id: reclaim.id }, status: 200 })).state === "running");

  // What is no JSON.
  await walk({ id: "createSnapshot", parameters: { name: "uploaded" }, body: { name: "s" }, status: 201 });
  for (const [id, path, type] of [
    ["getMetrics", "/metrics", "text/plain"],
    ["listenToEvents", "/v1/events", "text/event-stream"],
    ["downloadVolume", "/v1/volumes/uploaded/content", "application/octet-stream"],
    ["downloadSnapshot", "/v1/volumes/uploaded/snapshots/s/content", "application/octet-stream"],
  ]) {
    const { stdout } = await execute(
      "curl",
      [
        "-sS",
        "--max-time",
        "1",
        "-D",
        "-",
        "-o",
        "/dev/null",
        "--unix-socket",
        api.socketPath,
        `http://localhost${path}`,
      ],
      { timeout: 20_000 },
    ).catch((error: { stdout: string }) => error); // events have no end
    assert.match(stdout, new RegExp(`^HTTP/1.1 200[^]*content-type: ${type}`, "i"));
    assert.ok(type in operations.get(id)!.operation.responses["200"].content!);
    walked.add(id);
  }

  // And what goes wrong.
  for (const [id, { path }] of operations) {
    if (!path.includes("{") || id === "importVolume") continue; // which makes what is not there
    const needed: Record<string, object> = {
      changeVolume: { settings: {} },
      steerHydration: {},
      reopenVolume: {},
      createSnapshot: { name: "s" },
      revertVolume: { snapshot: "s" },
      recordTrace: { seconds: 1 },
      setTrace: { imageBytes: 1, recordedAt, reads: [] },
    };
    await walk({ id, parameters: nothing, status: 404, ...(id in needed ? { body: needed[id] } : {}) });
  }
  for (const id of ["createVolume", "addExport", "createToken"])
    await walk({ id, body: { colour: "red" }, status: 400 });
  await walk({ id: "createVolume", body: { name: "v", size: 4096 }, status: 409 });
  await walk({ id: "createVolume", body: { name: "w", from: { source: "/nothing/there" } }, status: 422 });
  await walk({ id: "addExport", body: { name: "v", target: "v" }, status: 409 });
  for (const id of ["listVolumes", "listSnapshots", "listExports", "listImages", "listBlobs"]) {
    await walk({ id, query: "?limit=none", status: 400 });
  }
  assert.deepEqual([...walked].sort(), [...operations.keys()].sort(), "no operation was left out");
  for (const [id, { path }] of operations) if (path.includes("{")) assert.ok(refused.has(id), id);
});

/** What a user of the generated client writes; type-checked with it. */
const program = `
import { ApiError, DefaultService, OpenAPI, type Export, type Volume } from "./client/index";

export async function use(base: string, token: string): Promise<string[]> {
  OpenAPI.BASE = base;
  OpenAPI.TOKEN = token;
  const said: string[] = [];
  for (const name of ["a", "b", "c"]) {
    const made = await DefaultService.createVolume({ requestBody: { name, size: 4096 } });
    if (!("hydration" in made) || !("settings" in made)) throw new Error("a job, where none was asked for");
    said.push(made.name + " " + made.state);
  }
  const names: string[] = [];
  let cursor: string | undefined;
  do {
    const page = await DefaultService.listVolumes({ limit: 2, ...(cursor === undefined ? {} : { cursor }) });
    names.push(...page.volumes.map((volume: Volume) => volume.name));
    cursor = page.next ?? undefined;
  } while (cursor !== undefined);
  said.push(names.join());
  const snapshot = await DefaultService.createSnapshot({ name: "a", requestBody: { name: "s" } });
  said.push(snapshot.volume + "@" + snapshot.name);
  const added: Export = await DefaultService.addExport({ requestBody: { name: "x", target: "a@s" } });
  said.push(added.name + " " + added.readOnly);
  try {
    await DefaultService.createVolume({ requestBody: { name: "a", size: 4096 } });
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    said.push(error.status + " " + (error.body as { code: string }).code);
  }
  await DefaultService.removeVolume({ name: "a", snapshots: true });
  return said;
}
`;

/** Compiles `text` with the generated client. @returns the path of what came out */
async function compile(directory: string, name: string, text: string): Promise<string> {
  await writeFile(join(directory, `${name}.ts`), text);
  const options =
    "--ignoreConfig --strict --target es2022 --lib es2022,dom,dom.iterable --module commonjs --skipLibCheck";
  const more = ["--moduleResolution", "bundler", "--types", "", "--outDir", join(directory, "out")];
  const compiler = join(root, "node_modules/typescript/bin/tsc");
  await execute(process.execPath, [compiler, ...options.split(" "), ...more, join(directory, `${name}.ts`)], {
    timeout: 120_000,
  });
  return join(directory, "out", `${name}.js`);
}

async function generate(t: TestContext, document: unknown): Promise<string> {
  const directory = await temporaryDirectory(t);
  await writeFile(join(directory, "openapi.json"), JSON.stringify(document));
  const generator = join(root, "node_modules/openapi-typescript-codegen/bin/index.js");
  const io = ["--input", join(directory, "openapi.json"), "--output", join(directory, "client")];
  await execute(process.execPath, [generator, ...io, "--client", "fetch", "--useOptions", "--useUnionTypes"], {
    timeout: 120_000,
  });
  return directory;
}

void test("a client that somebody else's generator makes from the document type-checks, and works on a live server", async (t) => {
  const api = await startTcpApi(t);
  const { ullage, origin } = api;
  const secret = await api.token("admin");
  const headers = { authorization: `Bearer ${secret}` };
  const document: unknown = await (await fetch(`${origin}/openapi.json`, { headers })).json();
  const directory = await generate(t, document);
  const path = await compile(directory, "use", program);
  const made = createRequire(import.meta.url)(path) as { use: (base: string, token: string) => Promise<string[]> };
  assert.deepEqual(await made.use(origin, secret), [
    "a ok",
    "b ok",
    "c ok",
    "a,b,c",
    "a@s",
    "x true",
    "409 name-taken",
  ]);
  assert.deepEqual(
    (await ullage.listVolumes()).map(({ name }) => name),
    ["b", "c"],
  );
  // The types know what is wrong.
  const wrong = program.replace("size: 4096", `size: "large"`);
  await assert.rejects(compile(directory, "wrong", wrong), (error: { stdout: string }) =>
    /Type 'string' is not assignable to type 'number'/.test(error.stdout),
  );
});
