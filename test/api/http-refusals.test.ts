import assert from "node:assert/strict";
import { connect, type Socket } from "node:net";
import { test, type TestContext } from "node:test";
import type { Problem } from "../../src/api/problems.ts";
import { atEnd } from "../daemon/support.ts";
import { requireTool } from "../support/tools.ts";
import { curl, json, refusal, startTcpApi, type TcpApi } from "./tcp-support.ts";

/** What does not happen fails the test instead of holding it up; far more than it takes on a loaded machine. */
const patience = { timeout: 60_000 };

const host = "Host: localhost\r\n";
const asJson = `${host}Content-Type: application/json\r\n`;

interface RawAnswer {
  status: number;
  headers: string;
  body: string;
}

/** Answers of known length, one behind the other. */
function answersIn(received: string): RawAnswer[] {
  const answers: RawAnswer[] = [];
  for (let rest = received; rest !== "";) {
    const end = rest.indexOf("\r\n\r\n") + 4;
    const headers = rest.slice(0, end);
    const length = Number(/content-length: (\d+)/i.exec(headers)?.[1]);
    answers.push({ status: Number(headers.split(" ")[1]), headers, body: rest.slice(end, end + length) });
    rest = rest.slice(end + length);
  }
  return answers;
}

/** `400 malformed-request` of a complete problem document. */
function problemIn({ status, headers, body }: RawAnswer): string {
  assert.match(headers, /^content-type: application\/problem\+json/im);
  const problem = JSON.parse(body) as Problem;
  assert.equal(problem.status, status);
  assert.equal(problem.type, "about:blank");
  for (const text of [problem.title, problem.detail, problem.hint]) assert.ok(text !== undefined && text !== "", body);
  return `${status} ${problem.code}`;
}

/** A connection with which a test does what it likes. */
async function connection(
  t: TestContext,
  api: TcpApi,
): Promise<{ socket: Socket; received: () => string; closed: Promise<void> }> {
  const socket = connect(api.port, "127.0.0.1");
  atEnd(t, async () => socket.destroy());
  let received = "";
  socket.on("data", (chunk: Buffer) => (received += chunk.toString("latin1")));
  socket.on("error", () => undefined);
  const closed = new Promise<void>((resolve) => socket.on("close", () => resolve()));
  await new Promise((resolve) => socket.once("connect", resolve));
  return { socket, received: () => received, closed };
}

void test("whatever is no request that HTTP allows is refused with a problem document", patience, async (t) => {
  const api = await startTcpApi(t);
  const long = "x".repeat(20_000);
  const cases: [string, string][] = [
    ["hello there\r\n\r\n", "400 malformed-request"],
    ["\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 and so on", "400 malformed-request"],
    [`GET /v1/jobs HTTP/1.1\r\n${host}Bad Header: x\r\n\r\n`, "400 malformed-request"],
    ["GET /v1/jobs HTTP/1.1\r\n\r\n", "400 malformed-request"],
    ["GET /v1/jobs HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", "400 malformed-request"],
    ["GET /v1/jobs HTTP/1.1\nHost: localhost\n\n", "400 malformed-request"],
    [`POST /v1/volumes HTTP/1.1\r\n${asJson}Content-Length: x\r\n\r\n`, "400 malformed-request"],
    [
      `POST /v1/volumes HTTP/1.1\r\n${asJson}Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}`,
      "400 malformed-request",
    ],
    [`GET /v1/jobs HTTP/1.1\r\n${host}X: ${long}\r\n\r\n`, "431 too-large-headers"],
    [`GET /${long} HTTP/1.1\r\n${host}\r\n`, "431 too-large-headers"],
    [`FETCH /v1/jobs HTTP/1.1\r\n${host}\r\n`, "501 unknown-method"],
    [`CONNECT example.com:80 HTTP/1.1\r\n${host}\r\n`, "501 unknown-method"],
    ["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505 http-version"],
    [`GET / HTTP/3.0\r\n${host}\r\n`, "505 http-version"],
    [`POST /v1/volumes HTTP/1.1\r\n${asJson}Expect: a miracle\r\nContent-Length: 2\r\n\r\n{}`, "417 bad-expectation"],
  ];
  for (const [bytes, expected] of cases) {
    const answers = answersIn(await api.raw(bytes));
    assert.deepEqual(answers.map(problemIn), [expected], JSON.stringify(bytes.slice(0, 100)));
    assert.match(answers[0].headers, /^connection: close/im);
  }
  const [tls] = answersIn(await api.raw("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"));
  assert.match(tls.body, /this is TLS/);
});

void test("what the framework refuses has a code and a hint of ours", patience, async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startTcpApi(t);
  const post = (...args: string[]): ReturnType<typeof curl> => api.as("write", "/v1/volumes", "-X", "POST", ...args);
  const type = ["-H", "Content-Type: application/json"];
  const cases: [() => ReturnType<typeof curl>, string][] = [
    [() => api.as("read", "/v1/volumes/%zz"), "400 bad-request"],
    [() => api.as("read", `/v1/volumes/${"x".repeat(1000)}`), "414 too-long-path"],
    [() => api.as("read", "/v1/volumes", "-X", "PROPFIND"), "405 wrong-method"],
    [() => api.as("read", "/v1/volumes", "-X", "TRACE"), "405 wrong-method"],
    [() => post(...type, "-d", "{x"), "400 bad-request"],
    [() => post(...type, "-d", ""), "400 bad-request"],
    [() => post(...type, "-d", '{"__proto__":{"name":"v"}}'), "400 bad-request"],
    [() => post(...type, "-d", '{"name":"v","size":"4096"}'), "400 bad-request"],
    [() => post("-H", "Content-Type: ;;;", "-d", "{}"), "415 not-json"],
    [() => post("-H", "Content-Type: text/plain", "-d", "{}"), "415 not-json"],
    [() => post(...type, "-H", "Content-Length: 300000", "-d", "{}"), "413 too-large-request"],
  ];
  for (const [ask, expected] of cases) {
    const answer = await ask();
    assert.equal(refusal(answer), expected);
    assert.notEqual((JSON.parse(answer.text) as Problem).hint ?? "", "", answer.text);
  }
});

void test("a request that comes too slowly is told so: its headers, and its body", patience, async (t) => {
  const api = await startTcpApi(t, { headersMs: 1000, transferLimits: { bodyMs: 1000, answerStallMs: 30_000 } });
  const secret = await api.token("write");
  const text = JSON.stringify({ name: "v", size: 4096 });
  const head = `POST /v1/volumes HTTP/1.1\r\n${asJson}Authorization: Bearer ${secret}\r\nContent-Length: ${text.length}\r\n\r\n`;
  for (const [first, rest] of [
    [head.slice(0, 40), head.slice(40) + text],
    [head + text.slice(0, 5), text.slice(5)],
  ]) {
    const { socket, received, closed } = await connection(t, api);
    socket.write(first);
    await new Promise((resolve) => socket.once("data", resolve));
    socket.write(rest); // too late: a request that was refused is not done
    await closed;
    assert.deepEqual(answersIn(received()).map(problemIn), ["408 too-slow-request"]);
  }
  assert.deepEqual(await api.ullage.listVolumes(), []);
});

void test("what comes behind a request is refused behind its answer, and never instead of it", patience, async (t) => {
  const api = await startTcpApi(t);
  const secret = await api.token("write");
  const text = JSON.stringify({ name: "v", size: 4096 });
  const head = `${asJson}Authorization: Bearer ${secret}\r\n`;
  const asked = `POST /v1/volumes HTTP/1.1\r\n${head}Content-Length: ${text.length}\r\n\r\n${text}`;
  const answers = answersIn(await api.raw(`${asked}rubbish\r\n\r\n${asked}`));
  assert.equal(answers[0].status, 201);
  assert.deepEqual(answers.slice(1).map(problemIn), ["400 malformed-request"]);
  assert.equal((await api.ullage.listVolumes()).length, 1);
});

void test(
  "a body that breaks off into rubbish is refused, one that is being answered already is cut",
  patience,
  async (t) => {
    const api = await startTcpApi(t);
    const secret = await api.token("write");
    const head = (type: string): string =>
      `${host}Authorization: Bearer ${secret}\r\nContent-Type: ${type}\r\nTransfer-Encoding: chunked\r\n\r\n`;
    const asJsonBody = await api.raw(`POST /v1/volumes HTTP/1.1\r\n${head("application/json")}zz\r\n{}`);
    assert.deepEqual(answersIn(asJsonBody).map(problemIn), ["400 malformed-request"]);
    const asDisk = await api.raw(
      `PUT /v1/volumes/v/content HTTP/1.1\r\n${head("application/octet-stream")}4\r\ndisk\r\nzz\r\n`,
    );
    assert.deepEqual(answersIn(asDisk).map(problemIn), ["400 malformed-request"]);
    // It is cleared away when the connection is gone.
    while ((await api.ullage.listVolumes()).length > 0) await new Promise((resolve) => setTimeout(resolve, 20));
    const twice = await api.raw(`POST /v1/nothing HTTP/1.1\r\n${head("application/json")}2\r\n{}\r\nzz\r\n`);
    assert.ok(answersIn(twice).length <= 1, "one request, one answer");
  },
);

void test("a client that was refused and stays is disconnected, and the server is well", patience, async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startTcpApi(t);
  const socket = connect({ port: api.port, host: "127.0.0.1", allowHalfOpen: true });
  atEnd(t, async () => socket.destroy());
  socket.on("error", () => undefined);
  socket.resume().write("rubbish\r\n\r\n");
  const sending = setInterval(() => socket.write("more of it\r\n\r\n"), 50);
  await new Promise((resolve) => socket.on("close", resolve));
  clearInterval(sending);
  assert.equal(refusal(await api.as("write", "/v1/volumes", ...json("POST", { name: "v", size: 1 }))), "400 bad-size");
});
