import assert from "node:assert/strict";
import { test } from "node:test";
import { ApiListener } from "../../src/api/api-listener.ts";
import type { Scope } from "../../src/api/scopes.ts";
import { requireTool } from "../support/tools.ts";
import { curl, json, refusal, startTcpApi, type TcpApi } from "./tcp-support.ts";

const unlimited = { requestsPerSecond: 1e6, strangers: 1e6, strangerWindowMs: 10_000 };
const day = 86_400;

interface Operation {
  method: string;
  path: string;
  scope: Scope;
}

/** Everything that the API offers, with the scope that its OpenAPI document says. */
async function operations(api: TcpApi): Promise<Operation[]> {
  const { text } = await curl("--unix-socket", api.socketPath, "http://localhost/openapi.json");
  const { paths } = JSON.parse(text) as {
    paths: Record<string, Record<string, { security?: [{ token: [Scope] }] }>>;
  };
  const found = Object.entries(paths).flatMap(([path, methods]) =>
    Object.entries(methods)
      .filter(([, { security }]) => security !== undefined) // public
      .map(([method, { security }]) => ({
        method: method.toUpperCase(),
        path: path.replaceAll(/\{\w+\}/g, "x"),
        scope: security![0].token[0],
      })),
  );
  return [...found, { method: "GET", path: "/openapi.json", scope: "read" }];
}

void test("over TCP nothing is answered without a token, not even whether a path exists", async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startTcpApi(t, { rateLimits: unlimited });
  for (const { method, path } of [...(await operations(api)), { method: "GET", path: "/v1/nothing" }]) {
    const answer = await curl("-X", method, `${api.origin}${path}`);
    assert.equal(refusal(answer), "401 no-token", `${method} ${path}`);
    assert.equal(answer.headers["www-authenticate"], 'Bearer realm="ullage"');
  }
});

void test("each route takes the scope that it states, and no lesser one", async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startTcpApi(t, { rateLimits: unlimited });
  const scopes: Scope[] = ["read", "write", "admin"];
  const all = await operations(api);
  assert.deepEqual(new Set(all.map(({ scope }) => scope)), new Set(scopes));
  for (const { method, path, scope } of all) {
    assert.ok(scope !== "read" || method === "GET", `${method} ${path}`);
    assert.ok(scope === "admin" || !path.startsWith("/v1/tokens"), `${method} ${path}`);
    for (const lesser of scopes.slice(0, scopes.indexOf(scope))) {
      const answer = await api.as(lesser, path, "-X", method);
      assert.equal(refusal(answer), "403 forbidden", `${method} ${path} with ${lesser}`);
      assert.match(answer.headers["www-authenticate"], new RegExp(`error="insufficient_scope", scope="${scope}"$`));
    }
  }
  const reopen = all.find(({ path }) => path.endsWith("/reopen"));
  assert.equal(reopen?.scope, "admin", "accepting a loss is for admins");
});

void test("a token opens what its scope includes", async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startTcpApi(t);
  assert.equal((await api.as("write", "/v1/volumes", ...json("POST", { name: "v", size: 4096 }))).status, 201);
  for (const scope of ["read", "write", "admin"] as const) {
    assert.equal((await api.as(scope, "/v1/volumes/v")).status, 200, scope);
  }
  assert.equal((await api.as("admin", "/v1/volumes/v/reopen", ...json("POST", {}))).status, 200);
  assert.equal((await api.as("admin", "/v1/volumes/v", "-X", "DELETE")).status, 204);
});

void test("a token that has expired or was removed opens nothing", async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startTcpApi(t);
  const secret = await api.token("read", day);
  const ask = (): ReturnType<typeof curl> => curl(`${api.origin}/v1/health`, "-H", `Authorization: Bearer ${secret}`);
  assert.equal((await ask()).status, 200);
  api.advance((day - 60) * 1000);
  assert.equal((await ask()).status, 200);
  api.advance(60_000);
  const expired = await ask();
  assert.equal(refusal(expired), "401 expired-token");
  assert.match(
    expired.headers["www-authenticate"],
    /^Bearer realm="ullage", error="invalid_token", error_description="/,
  );
  await api.tokens.remove("read-0");
  assert.equal(refusal(await ask()), "401 bad-token");
});

void test("an Authorization header that is not right is refused, however it is wrong", async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startTcpApi(t, { rateLimits: unlimited });
  const right = await api.token("admin");
  const other = await api.token("read");
  const values = [
    "",
    right,
    "Bearer",
    "Bearer ",
    `Basic ${Buffer.from(`admin:${right}`).toString("base64")}`,
    `Bearer ${right} ${right}`,
    `Bearer ${right}=`,
    `Bearer ${right.slice(0, -1)}`,
    `Bearer ${right.slice(0, 40)}${other.slice(40)}`,
    `Bearer ${right.toUpperCase()}`,
    `Bearer ${right.replace("ullage_", "")}`,
    `Bearer "${right}"`,
    `Bearer ${"A".repeat(8000)}`,
    "Bearer \u00e4\u00f6\u00fc",
    `Token ${right}`,
  ];
  for (const value of values) {
    const answer = await curl(`${api.origin}/v1/health`, "-H", `Authorization${value === "" ? ";" : `: ${value}`}`);
    assert.equal(refusal(answer), "401 bad-token", value);
    assert.ok(!answer.text.includes(right), "what was presented is not told back");
  }
  assert.equal((await curl(`${api.origin}/v1/health`, "-H", `authorization: bearer  ${right}`)).status, 200);
  assert.equal((await curl(`${api.origin}/v1/health?token=${right}`)).status, 401, "addresses end up in logs");
  assert.equal((await curl(`${api.origin}/v1/health`, "-b", `token=${right}`)).status, 401, "no cookies");
});

void test("a unix socket needs no token, and goes by any name", async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startTcpApi(t);
  const path = ["--unix-socket", api.socketPath, "http://anything.example/v1/tokens"];
  assert.equal((await curl(...path)).status, 200);
});

void test("tokens can be switched off on loopback, and nowhere else", async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startTcpApi(t, { auth: "off" });
  assert.equal((await curl(`${api.origin}/v1/tokens`)).status, 200);
  assert.equal(refusal(await curl(`${api.origin}/v1/health`, "-H", "Host: evil.example")), "421 wrong-host");
  for (const host of ["0.0.0.0", "::"]) {
    const listening = ApiListener.listen({ kind: "tcp", host, port: 0 }, () => undefined, { auth: "off" });
    await assert.rejects(listening, { code: "api-auth" });
  }
});

void test("only names that can't be rebound to another machine are taken, and those that the operator gave", async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startTcpApi(t, { rateLimits: unlimited, hostNames: ["ullage.example.org"] });
  const status = async (host: string): Promise<number> => (await api.as("read", "/v1/health", "-H", host)).status;
  for (const host of [
    `127.0.0.1:${api.port}`,
    "127.0.0.1",
    "localhost:8080",
    "LOCALHOST",
    "[::1]:7070",
    "192.168.1.5",
    "ullage.example.org",
    "ullage.example.org:443",
  ]) {
    assert.equal(await status(`Host: ${host}`), 200, host);
  }
  for (const host of [
    "evil.example",
    "evil.example:7070",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "localhost.",
    "ullage.example.org.evil.example",
    "x@localhost",
    "localhost/x",
    "localhost:x",
    "[::1",
  ]) {
    assert.equal(await status(`Host: ${host}`), 421, host);
  }
  assert.equal((await api.as("read", "/v1/health", "-0", "-H", "Host:")).status, 421, "none at all");
});

void test("pages of other origins are refused, and nothing invites them", async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startTcpApi(t, { rateLimits: unlimited, hostNames: ["ullage.example.org"] });
  const from = (origin: string): ReturnType<typeof curl> => api.as("admin", "/v1/health", "-H", `Origin: ${origin}`);
  for (const origin of [api.origin, "https://ullage.example.org"])
    assert.equal((await from(origin)).status, 200, origin);
  for (const origin of ["https://evil.example", "http://localhost:1", "null", "file://", `https://${api.origin}`]) {
    assert.equal(refusal(await from(origin)), "403 foreign-origin", origin);
  }
  const preflight = await api.as("admin", "/v1/volumes", "-X", "OPTIONS", "-H", "Access-Control-Request-Method: POST");
  assert.equal(preflight.status, 405);
  for (const { headers } of [preflight, await api.as("admin", "/v1/health")]) {
    const inviting = Object.keys(headers).filter((name) => /^(access-control-|set-cookie)/.test(name));
    assert.deepEqual(inviting, []);
    assert.equal(headers["cache-control"], "no-store");
    assert.equal(headers["x-content-type-options"], "nosniff");
  }
});

void test("names that look like paths are names of nothing", async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startTcpApi(t);
  const up = ["..", "../..", "..%2f..%2fetc%2fpasswd", "%2e%2e%2fcatalog.db", "%00"];
  for (const name of [...up, "a".repeat(300), "%ff%fe", "x%2fy", "%"]) {
    for (const collection of ["volumes", "tokens"]) {
      for (const method of ["GET", "DELETE"]) {
        const { status, text } = await api.as("admin", `/v1/${collection}/${name}`, ...json(method, { settings: {} }));
        assert.ok(status >= 400 && status < 500, `${method} ${name}: ${status} ${text}`);
        assert.equal(typeof (JSON.parse(text) as { code: string }).code, "string", `${method} ${name}`);
      }
    }
    const volume = await api.as("admin", "/v1/volumes", ...json("POST", { name: decoded(name), size: 4096 }));
    assert.equal(refusal(volume), "400 bad-request", name);
    const token = await api.as("admin", "/v1/tokens", ...json("POST", { name: decoded(name), scope: "read" }));
    assert.equal(refusal(token), "400 bad-request", name);
  }
  assert.deepEqual(await api.ullage.listVolumes(), []);
});

function decoded(name: string): string {
  try {
    return decodeURIComponent(name);
  } catch {
    return name;
  }
}

void test("a key of one caller is nothing to another", async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startTcpApi(t);
  const make = (secret: string, name: string): ReturnType<typeof curl> =>
    curl(
      `${api.origin}/v1/volumes`,
      ...json("POST", { name, size: 4096 }),
      "-H",
      "Idempotency-Key: k",
      "-H",
      `Authorization: Bearer ${secret}`,
    );
  const [one, two] = [await api.token("write"), await api.token("write")];
  const id = async (made: ReturnType<typeof curl>): Promise<string> =>
    (JSON.parse((await made).text) as { id: string }).id;
  const first = await id(make(one, "a"));
  assert.equal(await id(make(one, "a")), first);
  assert.equal(refusal(await make(one, "b")), "422 request-key-reused");
  assert.equal(refusal(await make(two, "a")), "409 name-taken");
  assert.notEqual(await id(make(two, "b")), first);
});
