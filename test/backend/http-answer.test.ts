import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { conditionsFor, identityOf, parseContentRange, pinsOf } from "../../src/backend/http/http-answer.ts";

void test("Content-Range is understood exactly or not at all", () => {
  assert.deepEqual(parseContentRange("bytes 0-99/1234"), { first: 0, last: 99, total: 1234 });
  assert.deepEqual(parseContentRange("bytes 0-99/*"), { first: 0, last: 99, total: undefined });
  assert.deepEqual(parseContentRange("bytes */0"), { first: -1, last: -1, total: 0 });
  for (const text of ["", "bytes 9-0/10", "bytes 0-9", "bytes=0-9/10", "bytes 0-9/10, bytes 0-9/10", "bytes -9/10"]) {
    assert.equal(parseContentRange(text), undefined, text);
  }
  assert.equal(parseContentRange("bytes 0-9/9999999999999999"), undefined);
  assert.equal(parseContentRange(undefined), undefined);
});

void test("any Content-Range that is understood is what was sent", () => {
  const number = fc.nat({ max: Number.MAX_SAFE_INTEGER });
  fc.assert(
    fc.property(number, number, number, (a, b, total) => {
      const [first, last] = [Math.min(a, b), Math.max(a, b)];
      assert.deepEqual(parseContentRange(`bytes ${first}-${last}/${total}`), { first, last, total });
    }),
  );
  fc.assert(
    fc.property(fc.string(), (text) => {
      assert.ok(parseContentRange(text) === undefined || text.toLowerCase().startsWith("bytes "));
    }),
  );
});

void test("what a version pins is what the server had sent", () => {
  const modified = "Mon, 02 Nov 2026 10:00:00 GMT";
  const date = "Mon, 02 Nov 2026 10:00:02 GMT";
  const cases: [Record<string, string>, string, boolean, ReturnType<typeof pinsOf>][] = [
    [{ etag: '"a b"' }, 'etag:"a b"', true, { etag: '"a b"', lastModified: undefined }],
    [{ etag: '"x"', "last-modified": modified }, 'etag:"x"', true, { etag: '"x"', lastModified: undefined }],
    [{ etag: "unquoted" }, "etag:unquoted", false, { etag: "unquoted", lastModified: undefined }],
    [
      { "last-modified": modified, date },
      `last-modified:${modified}`,
      true,
      { etag: undefined, lastModified: modified },
    ],
    [{ "last-modified": modified }, `last-modified:${modified}`, false, { etag: undefined, lastModified: modified }],
    [
      { "last-modified": modified, date: modified, etag: 'W/"w"' },
      `last-modified:${modified} etag:W/"w"`,
      false,
      { etag: 'W/"w"', lastModified: modified },
    ],
    [{ "last-modified": "yesterday" }, "", false, { etag: undefined, lastModified: undefined }],
    [{}, "", false, { etag: undefined, lastModified: undefined }],
  ];
  for (const [headers, version, strong, pins] of cases) {
    assert.deepEqual(identityOf(headers, 5), { size: 5, version, strong });
    assert.deepEqual(pinsOf(version), pins);
  }
});

void test("only what a server can compare strongly is sent as a condition", () => {
  const conditions = (version: string): unknown => conditionsFor({ size: 1, version, strong: true });
  assert.deepEqual(conditions('etag:"x"'), { "if-match": '"x"' });
  assert.deepEqual(conditions('etag:W/"x"'), {});
  assert.deepEqual(conditions(""), {});
  const modified = "Mon, 02 Nov 2026 10:00:00 GMT";
  assert.deepEqual(conditions(`last-modified:${modified} etag:W/"x"`), { "if-unmodified-since": modified });
});
