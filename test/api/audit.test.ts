import assert from "node:assert/strict";
import { request } from "node:http";
import { test } from "node:test";
import { requireTool } from "../support/tools.ts";
import { curl, json, startTcpApi, type LogLine, type TcpApi } from "./tcp-support.ts";

/** What does not happen fails the test instead of holding it up; far more than it takes on a loaded machine. */
const patience = { timeout: 60_000 };

function audited(api: TcpApi): LogLine[] {
  return api.log.filter(({ fields }) => fields["event"] === "change" || fields["event"] === "denied");
}

void test("each change is a line with who, what, the result and the request, and so is each denial; looking is not", async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startTcpApi(t);
  const post = json("POST", { name: "v", size: 4096 });
  await curl("--unix-socket", api.socketPath, "http://x/v1/volumes", ...post, "-H", "X-Request-Id: mine-1");
  await api.as("write", "/v1/volumes", ...post, "-H", "X-Request-Id: mine-2");
  await api.as("write", "/v1/volumes/v?force=true", "-X", "DELETE");
  await api.as("read", "/v1/volumes/v", "-X", "DELETE");
  await curl(`${api.origin}/v1/volumes`);
  await api.as("read", "/v1/volumes");
  const found = audited(api).map(({ level, fields }) => {
    const { event, caller, method, path, name, status, code } = fields;
    return [level, event, caller, method, path, name, status, code];
  });
  assert.deepEqual(found, [
    ["info", "change", "unix", "POST", "/v1/volumes", "v", 201, undefined],
    ["info", "change", "token:write-0", "POST", "/v1/volumes", "v", 409, "name-taken"],
    ["info", "change", "token:write-0", "DELETE", "/v1/volumes/v", undefined, 204, undefined],
    ["warn", "denied", "token:read-1", "DELETE", "/v1/volumes/v", undefined, 403, "forbidden"],
    ["warn", "denied", "nobody", "GET", "/v1/volumes", undefined, 401, "no-token"],
  ]);
  const [first, second] = audited(api);
  assert.deepEqual([first.fields.requestId, second.fields.requestId], ["mine-1", "mine-2"]);
  assert.equal(first.fields.address, "unix");
  assert.match(String(second.fields.address), /^127\.0\.0\.1:\d+$/);
  assert.equal(first.message, "unix: POST /v1/volumes 'v': 201 (request mine-1)");
  assert.match(
    second.message,
    /^token:write-0 from 127\.0\.0\.1:\d+: POST \/v1\/volumes 'v': 409 name-taken \(request mine-2\)$/,
  );
  assert.equal(typeof first.fields.durationMs, "number");
});

void test("no secret gets into the log", async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startTcpApi(t);
  const made = await api.as("admin", "/v1/tokens", ...json("POST", { name: "ci", scope: "read" }));
  const { secret } = JSON.parse(made.text) as { secret: string };
  await curl(`${api.origin}/v1/tokens/ci`, "-X", "DELETE", "-H", `Authorization: Bearer ${secret}`);
  await api.as("admin", `/v1/tokens/${secret}?force=${secret}`, "-X", "DELETE");
  await api.as("admin", "/v1/tokens", ...json("POST", { name: secret, scope: "read" }));
  assert.equal(audited(api).length, 4);
  assert.doesNotMatch(JSON.stringify(api.log), /ullage_[0-9a-f]{32}_/);
});

void test("a line can't be forged, whatever is in the request", async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startTcpApi(t);
  const name = "x\ninfo token:root\u001b[31m\u2028";
  await api.as("write", "/v1/volumes", ...json("POST", { name, size: 4096 }));
  await api.as("write", `/v1/volumes/${encodeURIComponent(name)}`, "-X", "DELETE");
  await api.as("write", "/v1/volumes/\u00e9", "-X", "DELETE", "-H", "X-Request-Id: a b");
  assert.equal(audited(api).length, 3);
  for (const { message, fields } of audited(api)) {
    assert.match(message, /^[\x20-\x7e]+$/);
    assert.match(String(fields.requestId), /^[0-9a-f]{16}$/);
  }
});

void test("a request has an id in its answer: the client's when it is decent, else a new one", async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startTcpApi(t);
  const idFor = async (given: string): Promise<string> =>
    (await api.as("read", "/v1/health", "-H", `X-Request-Id: ${given}`)).headers["x-request-id"];
  assert.equal(await idFor("A-1.b_2"), "A-1.b_2");
  for (const given of ["a b", "x".repeat(65), "", 'a"b', "\u00e9"]) assert.match(await idFor(given), /^[0-9a-f]{16}$/);
  assert.match((await curl(`${api.origin}/v1/health`)).headers["x-request-id"], /^[0-9a-f]{16}$/);
});

void test("a change whose client has gone is told all the same", patience, async (t) => {
  const api = await startTcpApi(t);
  const body = JSON.stringify({ name: "v", size: 4096 });
  const outgoing = request({
    socketPath: api.socketPath,
    path: "/v1/volumes",
    method: "POST",
    headers: { "content-type": "application/json", "content-length": body.length },
  });
  outgoing.on("error", () => undefined);
  await new Promise<void>((resolve) => outgoing.end(body, resolve));
  while ((await api.ullage.listVolumes()).length === 0) await new Promise((next) => setTimeout(next, 1));
  outgoing.destroy();
  while (audited(api).length === 0) await new Promise((next) => setTimeout(next, 1));
  assert.deepEqual([audited(api)[0].fields["path"], audited(api)[0].fields["status"]], ["/v1/volumes", 201]);
});
