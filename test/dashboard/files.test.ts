import assert from "node:assert/strict";
import { test } from "node:test";
import { startDashboard } from "./support.ts";

void test("the page and its files need no token, say what they are, and are allowed to do little", async (t) => {
  const { url } = await startDashboard(t);
  const expected: [string, string][] = [
    ["", "text/html; charset=utf-8"],
    ["dashboard/main.js", "text/javascript; charset=utf-8"],
    ["dashboard/vendor/preact.js", "text/javascript; charset=utf-8"],
    ["dashboard/style.css", "text/css; charset=utf-8"],
    ["dashboard/icon.svg", "image/svg+xml"],
  ];
  for (const [path, type] of expected) {
    const answer = await fetch(`${url}${path}`);
    assert.equal(answer.status, 200, path);
    assert.equal(answer.headers.get("content-type"), type);
    assert.equal(answer.headers.get("x-content-type-options"), "nosniff");
    assert.equal(answer.headers.get("referrer-policy"), "no-referrer");
    const policy = answer.headers.get("content-security-policy") ?? "";
    for (const rule of ["default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'"]) {
      assert.ok(policy.split("; ").includes(rule), `${path}: ${rule} in ${policy}`);
    }
    assert.doesNotMatch(policy, /unsafe|\*|https?:/);
    assert.notEqual(await answer.text(), "");
  }
});

void test("a file that a browser has already is not sent again", async (t) => {
  const { url } = await startDashboard(t);
  const first = await fetch(`${url}dashboard/main.js`);
  await first.text();
  const etag = first.headers.get("etag")!;
  const again = await fetch(`${url}dashboard/main.js`, { headers: { "if-none-match": etag } });
  assert.deepEqual([again.status, await again.text(), again.headers.get("etag")], [304, "", etag]);
  const other = await fetch(`${url}dashboard/main.js`, { headers: { "if-none-match": '"another"' } });
  assert.equal(other.status, 200);
});

void test("nothing but the dashboard's own files can be read below its path", async (t) => {
  const { url } = await startDashboard(t);
  for (const path of [
    "dashboard/",
    "dashboard/missing.js",
    "dashboard/..%2f..%2fpackage.json",
    "dashboard/%2e%2e/static-files.ts",
    "dashboard/vendor/../../static-files.ts",
    "dashboard/constructor",
    "dashboard/__proto__",
    "dashboard//etc/passwd",
  ]) {
    const answer = await fetch(`${url}${path}`);
    // Without a token, what does not exist is answered like everything else that is not public.
    assert.ok([401, 404].includes(answer.status), `${path}: ${answer.status}`);
    assert.match(answer.headers.get("content-type") ?? "", /^application\/problem\+json/, path);
  }
});

void test("every module that a module imports is served, and no import needs a map", async (t) => {
  const { url } = await startDashboard(t);
  const seen = new Set<string>();
  const visit = async (address: string): Promise<void> => {
    if (seen.has(address)) return;
    seen.add(address);
    const answer = await fetch(address);
    assert.equal(answer.status, 200, address);
    const source = await answer.text();
    assert.doesNotMatch(source, /sourceMappingURL/, address);
    for (const [, specifier] of source.matchAll(/\b(?:from|import)\s*"([^"\s]+)"/g)) {
      assert.match(specifier, /^\.\//, `${address} imports ${specifier}`);
      await visit(new URL(specifier, address).href);
    }
  };
  await visit(`${url}dashboard/main.js`);
  assert.ok(seen.size > 20, `${seen.size} modules`);
  assert.ok([...seen].every((address) => address.startsWith(url)));
});
