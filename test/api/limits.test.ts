import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { writeFile } from "node:fs/promises";
import { connect } from "node:net";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";
import Fastify from "fastify";
import { ApiListener } from "../../src/api/api-listener.ts";
import { limitTransfers } from "../../src/api/time-limits.ts";
import { atEnd, temporaryDirectory } from "../daemon/support.ts";
import { requireTool } from "../support/tools.ts";
import { curl, json, refusal, startTcpApi, type CurlAnswer, type TcpApi } from "./tcp-support.ts";

/** What does not happen fails the test instead of holding it up; far more than it takes on a loaded machine. */
const patience = { timeout: 60_000 };

/** Windows that do not end while a test runs. */
const long = 3_600_000;
const limits = { requestsPerSecond: 1e6, strangers: 5, strangerWindowMs: long };

function withToken(api: TcpApi, secret: string): Promise<CurlAnswer> {
  return curl(`${api.origin}/v1/health`, "-H", `Authorization: Bearer ${secret}`);
}

/** Of so many requests over one connection. */
async function statuses(url: string, count: number, ...args: string[]): Promise<number[]> {
  const urls = Array.from({ length: count }, () => [url, "-o", "/dev/null"]).flat();
  const { stdout } = await promisify(execFile)("curl", ["-s", "-w", "%{http_code}\n", ...args, ...urls]);
  return stdout.split("\n").filter(Boolean).map(Number);
}

void test("a client that asks too often is told when to come back; others are not held up", async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startTcpApi(t, { rateLimits: { ...limits, requestsPerSecond: 1 } });
  const [wild, calm] = [await api.token("read"), await api.token("read")];
  const header = ["-H", `Authorization: Bearer ${wild}`];
  const found = await statuses(`${api.origin}/v1/health`, 30, ...header);
  assert.ok(found.includes(429), found.join(" "));
  assert.ok(found.includes(200));
  assert.equal((await withToken(api, calm)).status, 200);
});

void test("guesses are limited by address, whatever is presented; a token that was used before still opens", async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startTcpApi(t, { rateLimits: limits });
  const [used, fresh] = [await api.token("read"), await api.token("read")];
  assert.equal((await withToken(api, used)).status, 200);
  const answers: string[] = [];
  for (let guess = 0; guess < 8; guess++) {
    const secret = `ullage_${"0".repeat(31)}${guess}_${"A".repeat(43)}`;
    answers.push(refusal(await withToken(api, secret)));
  }
  assert.deepEqual(answers, [...Array<string>(5).fill("401 bad-token"), ...Array<string>(3).fill("429 rate-limited")]);
  const right = await withToken(api, fresh);
  assert.equal(refusal(right), "429 rate-limited", "a right guess looks like a wrong one");
  assert.ok(Number(right.headers["retry-after"]) >= 1);
  assert.equal((await withToken(api, used)).status, 200);
  assert.equal((await curl("--unix-socket", api.socketPath, "http://localhost/v1/health")).status, 200);
});

void test("what strangers do is logged so often and no more", async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startTcpApi(t, { rateLimits: limits });
  for (const args of [[], ["-H", "Host: evil.example"], ["-H", "Origin: https://evil.example"]]) {
    for (let request = 0; request < 4; request++) await curl(`${api.origin}/v1/health`, ...args);
  }
  assert.equal(api.log.filter(({ fields }) => fields["event"] === "denied").length, limits.strangers);
});

void test("a unix socket has no rate", async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startTcpApi(t, { rateLimits: { ...limits, requestsPerSecond: 1 } });
  const found = await statuses("http://localhost/v1/health", 20, "--unix-socket", api.socketPath);
  assert.deepEqual(new Set(found), new Set([200]));
});

void test("a body that is too large is refused before it is read, a header as well", async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startTcpApi(t);
  const large = json("POST", { name: "v", size: 4096, padding: "x".repeat(100_000) });
  assert.equal(refusal(await api.as("write", "/v1/volumes", ...large)), "400 bad-request", "the largest that is read");
  const file = join(await temporaryDirectory(t), "large");
  await writeFile(file, " ".repeat(300_000));
  const type = ["-H", "Content-Type: application/json"];
  const chunked = ["-X", "POST", ...type, "-H", "Transfer-Encoding: chunked", "--data-binary", `@${file}`];
  for (const args of [chunked, ["-X", "POST", ...type, "--data-binary", `@${file}`]]) {
    assert.equal(refusal(await api.as("write", "/v1/volumes", ...args)), "413 too-large-request");
  }
  assert.equal(
    refusal(await api.as("read", "/v1/health", "-H", `X-Large: ${"x".repeat(20_000)}`)),
    "431 too-large-headers",
  );
  assert.equal(refusal(await api.as("read", `/v1/${"x".repeat(20_000)}`)), "431 too-large-headers");
  assert.deepEqual(await api.ullage.listVolumes(), []);
});

void test("a client that sends its request byte by byte loses the connection", patience, async (t) => {
  const api = await startTcpApi(t, {
    headersMs: 1500,
    idleMs: 1500,
    transferLimits: { bodyMs: 1500, answerStallMs: 1500 },
  });
  const secret = await api.token("write");
  const head = `Host: localhost\r\nAuthorization: Bearer ${secret}\r\nContent-Type: application/json\r\n`;
  const drip = (first: string, more: string): Promise<string> =>
    new Promise((resolve) => {
      let received = "";
      const socket = connect(api.port, "127.0.0.1", () => socket.write(first));
      const timer = setInterval(() => socket.write(more), 20);
      socket.on("data", (chunk: Buffer) => (received += chunk.toString()));
      socket.on("error", () => undefined);
      socket.on("close", () => {
        clearInterval(timer);
        resolve(received);
      });
    });
  const [headers, body, chunks, refused, silent, idle] = await Promise.all([
    drip("GET /v1/health HTTP/1.1\r\n", "x: y\r\n"),
    drip(`POST /v1/volumes HTTP/1.1\r\n${head}Content-Length: 100000\r\n\r\n`, " "),
    drip(`POST /v1/volumes HTTP/1.1\r\n${head}Transfer-Encoding: chunked\r\n\r\n`, "1\r\n \r\n"),
    drip("POST /v1/volumes HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n", " "),
    api.raw(""),
    api.raw(`GET /v1/health HTTP/1.1\r\n${head}\r\n`),
  ]);
  assert.doesNotMatch(headers, /^HTTP\/1\.1 200/);
  assert.doesNotMatch(body, /^HTTP\/1\.1 20/);
  assert.doesNotMatch(chunks, /^HTTP\/1\.1 20/);
  assert.match(refused, /^HTTP\/1\.1 401 /);
  assert.doesNotMatch(silent, /^HTTP\/1\.1 200/);
  assert.match(idle, /^HTTP\/1\.1 200 /);
  assert.deepEqual(await api.ullage.listVolumes(), []);
});

void test(
  "a client that does not read its answer loses the connection; a slow handler does not",
  patience,
  async (t) => {
    const app = Fastify();
    limitTransfers(app, { bodyMs: 100, answerStallMs: 100 });
    const lost = new Promise((resolve) => {
      app.get("/large", ({ raw }) => {
        raw.socket.once("close", resolve);
        return Buffer.alloc(64 * 2 ** 20);
      });
    });
    app.get("/slow", async () => {
      await new Promise((resolve) => setTimeout(resolve, 500));
      return "done";
    });
    await app.ready();
    const handler = app.routing.bind(app);
    const listener = await ApiListener.listen({ kind: "tcp", host: "127.0.0.1", port: 0 }, handler);
    atEnd(t, () => listener.close());
    const { port } = listener.address as { port: number };
    const socket = connect(port, "127.0.0.1");
    atEnd(t, async () => socket.destroy());
    socket.pause();
    socket.on("error", () => undefined);
    socket.write("GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert.equal(await (await fetch(`http://127.0.0.1:${port}/slow`)).text(), "done");
    await lost;
  },
);

void test("connections are limited; the unix socket has room of its own", patience, async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startTcpApi(t);
  const sockets = Array.from({ length: 300 }, () => connect(api.port, "127.0.0.1"));
  atEnd(t, async () => sockets.forEach((socket) => socket.destroy()));
  await new Promise<void>((resolve) => {
    let dropped = 0;
    for (const socket of sockets) {
      socket.on("error", () => undefined);
      socket.on("close", () => {
        if (++dropped === sockets.length - 256) resolve();
      });
    }
  });
  assert.equal((await curl("--unix-socket", api.socketPath, "http://localhost/v1/health")).status, 200);
});
