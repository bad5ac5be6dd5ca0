import assert from "node:assert/strict";
import { readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { Tokens } from "../../src/api/tokens.ts";
import { IoError, type UllageError } from "../../src/base/errors.ts";
import type { FileSystem } from "../../src/base/file-system.ts";
import { realFileSystem } from "../../src/base/real-file-system.ts";
import { temporaryDirectory } from "../daemon/support.ts";

interface TokenFile {
  formatVersion: number;
  tokens: { id: string; name: string; scope: string; sha256: string; createdAt: string; expiresAt: string | null }[];
}

void test("the file has hashes and no secrets, is for its owner only, and outlives the process", async (t) => {
  const dir = await temporaryDirectory(t);
  const first = await Tokens.open(dir);
  const { secret, token } = await first.create("ci", "write", 3600);
  assert.match(secret, /^ullage_[0-9a-f]{32}_[A-Za-z0-9_-]{43}$/);
  const path = join(dir, "tokens.json");
  assert.equal((await stat(path)).mode & 0o777, 0o600);
  const text = await readFile(path, "utf8");
  assert.ok(!text.includes(secret.slice(-43)));
  const { formatVersion, tokens } = JSON.parse(text) as TokenFile;
  assert.equal(formatVersion, 1);
  assert.deepEqual(Object.keys(tokens[0]), ["id", "name", "scope", "sha256", "createdAt", "expiresAt"]);
  assert.equal(Date.parse(tokens[0].expiresAt!) - Date.parse(tokens[0].createdAt), 3_600_000);
  const second = await Tokens.open(dir);
  assert.equal(second.check(secret)?.kind, "valid");
  assert.deepEqual({ ...second.list()[0], lastUsedAt: null }, token);
  assert.equal(first.list()[0].lastUsedAt, null);
  assert.notEqual(second.list()[0].lastUsedAt, null);
});

void test("a request that is repeated makes no second token, and can't be told the secret again", async (t) => {
  const dir = await temporaryDirectory(t);
  const request = { key: "k", digest: "d" };
  const tokens = await Tokens.open(dir);
  const [made, again] = await Promise.allSettled([1, 2].map(() => tokens.create("ci", "read", null, request)));
  assert.equal(made.status, "fulfilled");
  assert.equal(again.status === "rejected" && (again.reason as UllageError).code, "secret-told");
  const reopened = await Tokens.open(dir);
  await assert.rejects(reopened.create("ci", "read", null, request), { code: "secret-told", hint: /token rm ci/ });
  const other = { ...request, digest: "other" };
  await assert.rejects(reopened.create("di", "read", null, other), { code: "request-key-reused" });
  assert.equal(reopened.list().length, 1);
  await reopened.remove("ci");
  assert.equal((await reopened.create("ci", "read", null, request)).token.name, "ci", "a key goes with what it made");
});

void test("a removed token is void, after a restart as well, and its name is free", async (t) => {
  const dir = await temporaryDirectory(t);
  const tokens = await Tokens.open(dir);
  const { secret } = await tokens.create("ci", "read", null);
  await assert.rejects(tokens.create("ci", "admin", null), { code: "name-taken" });
  await tokens.remove("ci");
  await assert.rejects(tokens.remove("ci"), { code: "not-found" });
  for (const after of [tokens, await Tokens.open(dir)]) {
    assert.equal(after.check(secret), undefined);
    assert.deepEqual(after.list(), []);
  }
  await tokens.create("ci", "read", null);
});

void test("changes at the same time all count", async (t) => {
  const dir = await temporaryDirectory(t);
  const tokens = await Tokens.open(dir);
  await Promise.all(["d", "a", "c", "b"].map((name) => tokens.create(name, "read", null)));
  const names = (found: Tokens): string[] => found.list().map(({ name }) => name);
  assert.deepEqual(names(tokens), ["a", "b", "c", "d"]);
  assert.deepEqual(names(await Tokens.open(dir)), ["a", "b", "c", "d"]);
});

void test("what could not be written is not in force", async (t) => {
  const dir = await temporaryDirectory(t);
  let full = false;
  const fs: FileSystem = {
    ...realFileSystem,
    rename: (from, to) => (full ? Promise.reject(new IoError("ENOSPC", "no space")) : realFileSystem.rename(from, to)),
  };
  const tokens = await Tokens.open(dir, { fs });
  const { secret } = await tokens.create("a", "read", null);
  full = true;
  await assert.rejects(tokens.create("b", "read", null), { code: "io-enospc" });
  await assert.rejects(tokens.remove("a"), { code: "io-enospc" });
  assert.equal(tokens.check(secret)?.kind, "valid");
  full = false;
  await tokens.remove("a");
  assert.deepEqual((await Tokens.open(dir)).list(), []);
});

void test("a token for a link is in no file and in no list", async (t) => {
  const dir = await temporaryDirectory(t);
  const tokens = await Tokens.open(dir);
  const secret = tokens.issue("(dashboard)", "admin", 3600);
  const checked = tokens.check(secret);
  assert.deepEqual([checked?.kind, checked?.token.scope], ["valid", "admin"]);
  assert.deepEqual(tokens.list(), []);
  assert.equal((await Tokens.open(dir)).check(secret), undefined);
});

void test("a file that is damaged, or newer, stops the start and says what to do", async (t) => {
  const dir = await temporaryDirectory(t);
  const tokens = await Tokens.open(dir);
  await tokens.create("ci", "read", 60);
  const path = join(dir, "tokens.json");
  const good = await readFile(path, "utf8");
  for (const wrong of [
    "",
    "null",
    good.slice(0, -10),
    good.replace('"read"', '"root"'),
    good.replace(/"sha256": "../, '"sha256": "xy'),
    good.replace(/"expiresAt": "[^"]*"/, '"expiresAt": "tomorrow"'),
    good.replace(/"expiresAt": "[^"]*"/, '"expiresAt": 0'),
    good.replace('"formatVersion": 1', '"formatVersion": 0'),
  ]) {
    await writeFile(path, wrong);
    await assert.rejects(Tokens.open(dir), { code: "corrupt", hint: /move it away/ }, wrong);
  }
  await writeFile(path, good.replace('"formatVersion": 1', '"formatVersion": 2'));
  await assert.rejects(Tokens.open(dir), { code: "tokens-version", message: /has format 2, this Ullage knows 1/ });
});

void test("there are not more tokens than a file may hold", async (t) => {
  const dir = await temporaryDirectory(t);
  const record = { scope: "read", sha256: "0".repeat(64), createdAt: new Date().toISOString(), expiresAt: null };
  const many = Array.from({ length: 1000 }, (_, n) => ({ ...record, id: String(n).padStart(32, "0"), name: `t${n}` }));
  await writeFile(join(dir, "tokens.json"), JSON.stringify({ formatVersion: 1, tokens: many }));
  const tokens = await Tokens.open(dir);
  await assert.rejects(tokens.create("more", "read", null), { code: "token-limit" });
  await tokens.remove("t7");
  await tokens.create("more", "read", null);
});
