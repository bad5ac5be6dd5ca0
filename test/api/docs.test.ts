import assert from "node:assert/strict";
import { globSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { problemOf } from "../../src/api/problems.ts";
import { UllageError } from "../../src/base/errors.ts";
import { curl, startTcpApi } from "./tcp-support.ts";
import { requireTool } from "../support/tools.ts";

const root = join(import.meta.dirname, "../..");

/** Parts of Ullage whose errors can be the answer to a request. */
const answering = ["api", "backend", "blob", "catalog", "daemon", "image", "volume"];

/** What those parts say to others than clients of the API: at start, in the log, or to each other. */
const elsewhere = new Set(
  `aborted closed interrupted cancelled stream-dropped close-failed api-auth sources-allow credentials tokens-version
  catalog-damaged catalog-foreign catalog-lost catalog-version
  nothing-left client-stalled content-closed data-file-system data-foreign data-in-use data-missing data-unwritable`.split(
    /\s+/,
  ),
);

async function codesInSource(): Promise<Set<string>> {
  const codes = new Set(["corrupt"]); // base/errors.ts
  for (const file of globSync(`src/{${answering.join(",")}}/**/*.ts`, { cwd: root })) {
    if (file.startsWith("src/blob/remote/")) continue; // what the blob manager and its client tell each other
    const text = await readFile(join(root, file), "utf8");
    const made = /(?:new (?:Ullage|Source)Error|problem|super)\(\s*(?:\d+,\s*)?"([a-z-]+)"/g;
    for (const [, code] of text.matchAll(made)) codes.add(code);
    if (file === "src/api/problems.ts")
      for (const [, code] of text.matchAll(/^ {2}"?([a-z-]+)"?: \d+,$/gm)) codes.add(code);
  }
  return codes;
}

async function documented(): Promise<Map<string, string>> {
  const text = await readFile(join(root, "docs/API.md"), "utf8");
  const rows = [...text.matchAll(/^\| `([a-z-]+)` +\| (\d{3})/gm)];
  const codes = new Map(rows.map(([, code, status]) => [code, status]));
  assert.equal(codes.size, rows.length, "each code has one row");
  return codes;
}

void test("docs/API.md has every code that the API can answer with, and no other", async () => {
  const codes = await codesInSource();
  for (const code of elsewhere) assert.ok(codes.delete(code), `${code} is not in the source any more`);
  assert.deepEqual([...(await documented()).keys()].sort(), [...codes].sort());
});

void test("docs/API.md tells the status of each code", async () => {
  const framework = ["too-large-request", "too-long-path", "not-json", "wrong-method", "no-such-path"];
  framework.push("malformed-request", "bad-expectation", "too-large-headers", "unknown-method", "http-version");
  for (const [code, status] of await documented()) {
    if (status === "504" || framework.includes(code) || code === "internal" || code === "corrupt") continue;
    assert.equal(String(problemOf(new UllageError(code, "")).status), status, code);
  }
});

void test("/docs is a page that describes every operation and object, without a token and without a script", async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startTcpApi(t);
  const { status, headers, text } = await curl(`${api.origin}/docs`);
  assert.deepEqual([status, headers["content-type"]], [200, "text/html; charset=utf-8"]);
  assert.match(headers["content-security-policy"], /default-src 'none'/);
  assert.ok(!text.includes("<script") && !text.includes(" style="));
  const { paths, components } = api.app.swagger() as unknown as {
    paths: Record<string, Record<string, { operationId: string }>>;
    components: { schemas: object };
  };
  const ids = [...text.matchAll(/ id="([^"]+)"/g)].map((match) => match[1]);
  const operations = Object.values(paths).flatMap((methods) => Object.values(methods).map((each) => each.operationId));
  const schemas = Object.keys(components.schemas).map((name) => `schema-${name}`);
  assert.deepEqual(ids.sort(), [...operations, ...schemas].sort());
  for (const [, target] of text.matchAll(/href="#([^"]+)"/g)) assert.ok(ids.includes(target), target);
  for (const file of ["dashboard/docs.css", "dashboard/icon.svg"]) {
    assert.ok(text.includes(`href="${file}"`));
    assert.equal((await curl(`${api.origin}/${file}`)).status, 200);
  }
});
