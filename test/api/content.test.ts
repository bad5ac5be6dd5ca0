import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { readdir, readFile, stat, truncate, writeFile } from "node:fs/promises";
import { request } from "node:http";
import { connect } from "node:net";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { promisify } from "node:util";
import { namesTag, parseRange } from "../../src/api/byte-range.ts";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { UllageError } from "../../src/base/errors.ts";
import type { Ullage } from "../../src/daemon/ullage.ts";
import {
  sparseContentType,
  sparseData,
  sparseEnd,
  sparseFailure,
  sparseHeader,
} from "../../src/image/sparse-stream.ts";
import { openUllage, temporaryDirectory } from "../daemon/support.ts";
import { startHttpSource } from "../support/http-source.ts";
import { requireTool } from "../support/tools.ts";
import { startApi, type TestApi } from "./support.ts";
import { curl, refusal, startTcpApi, type CurlAnswer, type TcpApi } from "./tcp-support.ts";

/** What does not happen fails the test instead of holding it up; far more than it takes on a loaded machine. */
const patience = { timeout: 120_000 };
const execute = promisify(execFile);
const block = 4096;
const plain = ["-H", "Content-Type: application/octet-stream"];

async function until(what: string, holds: () => boolean | Promise<boolean>): Promise<void> {
  for (let n = 0; n < 2000; n++) {
    if (await holds()) return;
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
  assert.fail(`never: ${what}`);
}

/** curl on the unix socket, whose body goes to a file. */
async function download(api: TestApi, path: string, to: string, ...args: string[]): Promise<number> {
  const url = `http://localhost${path}`;
  const all = ["-sS", "--unix-socket", api.socketPath, "-o", to, "-w", "%{http_code}", ...args, url];
  return Number((await execute("curl", all)).stdout);
}

function upload(api: TestApi, path: string, file: string, ...args: string[]): Promise<CurlAnswer> {
  return curl("--unix-socket", api.socketPath, ...plain, "-T", file, ...args, `http://localhost${path}`);
}

async function put(ullage: Ullage, name: string, offset: number, bytes: Buffer): Promise<void> {
  await (await ullage.getDevice(name)).write(offset, bytes.length, IoBuffer.from(bytes), 0);
}

/** What is there for snapshots and clones in the data directory. */
async function leftOvers({ ullage }: { ullage: Ullage }): Promise<{ maps: number; layers: number; described: number }> {
  const dataDir = ullage.health().dataDirectory;
  const list = (name: string): Promise<string[]> => readdir(join(dataDir, name)).catch(() => []);
  let described = 0;
  for (const id of await list("volumes")) {
    described += (await list(join("volumes", id))).filter((name) => name.startsWith("snapshot")).length;
  }
  return { maps: (await list("maps")).length, layers: (await list("layers")).length, described };
}

void test("ranges are taken as the RFC says", () => {
  const range = (header: string, size = 1000): unknown => parseRange(header, size);
  assert.deepEqual(range("bytes=0-9"), { start: 0, end: 10 });
  assert.deepEqual(range("Bytes=990-"), { start: 990, end: 1000 });
  assert.deepEqual(range("bytes=-10"), { start: 990, end: 1000 });
  assert.deepEqual(range("bytes=-5000"), { start: 0, end: 1000 });
  assert.deepEqual(range("bytes=5-5000"), { start: 5, end: 1000 });
  for (const none of ["bytes=1000-", "bytes=1000-1001", "bytes=-0"]) assert.equal(range(none), "unsatisfiable", none);
  for (const all of ["", "bytes=", "bytes=-", "bytes=9-3", "bytes=0-1,5-6", "lines=1-2", "bytes=a-b"]) {
    assert.equal(range(all), undefined, all);
  }
  assert.equal(parseRange(undefined, 10), undefined);
  assert.ok(namesTag('"a", W/"b"', '"b"') && namesTag("*", '"b"'));
  assert.ok(!namesTag('"a"', '"b"') && !namesTag(undefined, '"b"'));
});

void test("a snapshot is downloaded as a whole, in parts, and not again", patience, async (t) => {
  if (!requireTool(t, "curl", "qemu-img")) return;
  const api = await startApi(t);
  const directory = await temporaryDirectory(t);
  const content = randomBytes(3 * 65_536 + 512);
  await api.ullage.createVolume({ name: "v", size: content.length });
  await put(api.ullage, "v", 0, content);
  const { id } = await api.ullage.createSnapshot("v", "s");
  await put(api.ullage, "v", 0, Buffer.alloc(content.length));
  const path = "/v1/volumes/v/snapshots/s/content";
  const file = join(directory, "file");
  assert.equal(await download(api, path, file), 200);
  assert.ok((await readFile(file)).equals(content));

  const head = await api.call(path, { method: "HEAD" });
  const { etag, "content-length": length, "accept-ranges": ranges } = head.headers;
  assert.deepEqual([head.status, etag, length, ranges], [200, `"${id}"`, String(content.length), "bytes"]);

  for (const [range, start, end] of [
    ["100-70000", 100, 70_001],
    ["-513", content.length - 513, content.length],
    ["196608-", 196_608, content.length],
  ] as const) {
    assert.equal(await download(api, path, file, "-r", range), 206);
    assert.ok((await readFile(file)).equals(content.subarray(start, end)), range);
  }
  const get = (...args: string[]): Promise<CurlAnswer> =>
    curl("--unix-socket", api.socketPath, ...args, `http://localhost${path}`);
  const behind = await get("-r", "900000-");
  assert.equal(refusal(behind), "416 no-such-range");
  assert.equal(behind.headers["content-range"], `bytes */${content.length}`);
  assert.equal((await get("-H", `If-None-Match: "${id}"`)).status, 304);
  assert.equal(await download(api, path, file, "-r", "0-9", "-H", `If-Range: "${id}"`), 206);
  assert.equal(await download(api, path, file, "-r", "0-9", "-H", 'If-Range: "other"'), 200);

  // Interrupted, and taken up where it was; as qcow2, too.
  for (const format of ["raw", "qcow2"]) {
    const whole = join(directory, `whole.${format}`);
    const parts = join(directory, `parts.${format}`);
    await download(api, `${path}?format=${format}`, whole);
    await writeFile(parts, (await readFile(whole)).subarray(0, 70_000));
    assert.equal(await download(api, `${path}?format=${format}`, parts, "-C", "-"), 206);
    assert.ok((await readFile(parts)).equals(await readFile(whole)), format);
  }
  await execute("qemu-img", ["check", join(directory, "parts.qcow2")]);
  await until("its map is in a file", async () => (await leftOvers(api)).maps === 1);
  assert.deepEqual(await leftOvers(api), { maps: 1, layers: 2, described: 1 });
});

void test("a volume is downloaded as it was at one moment, however it is written to", patience, async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startApi(t);
  const blocks = 2048;
  await api.ullage.createVolume({ name: "v", size: blocks * block });
  const device = await api.ullage.getDevice("v");
  const stop = new AbortController();
  let round = 1;
  // One block after the other, over and over: at each moment, those of a round stand before those of the round before.
  const writer = (async () => {
    for (; !stop.signal.aborted; round++) {
      const buffer = IoBuffer.from(Buffer.alloc(block, round % 251));
      buffer.bytes.writeUInt32LE(round);
      for (let at = 0; at < blocks && !stop.signal.aborted; at++) {
        await device.write(at * block, block, buffer, 0);
        if (at % 64 === 0) await new Promise((resolve) => setImmediate(resolve));
      }
    }
  })();
  await until("the first round", () => round > 1);
  const began = performance.now();
  await until("the third round", () => round > 3);
  const roundMs = (performance.now() - began) / 2;
  const file = join(await temporaryDirectory(t), "file");
  const before = round;
  const rate = Math.min(6 * 1024 * 1024, Math.floor((blocks * block * 1000) / (4 * roundMs))); // a round takes a quarter of it
  const answered = download(api, "/v1/volumes/v/content", file, "--limit-rate", `${rate}`, "--no-buffer");
  assert.equal(await answered, 200);
  stop.abort();
  await writer;
  assert.ok(round > before + 1, "it was written to all over meanwhile");
  const bytes = await readFile(file);
  const rounds = Array.from({ length: blocks }, (_, at) => bytes.readUInt32LE(at * block));
  const steps = rounds.slice(1).filter((value, at) => value !== rounds[at]);
  assert.ok(steps.length <= 1 && rounds[0] - rounds[blocks - 1] <= 1, `rounds ${[...new Set(rounds)].join(" ")}`);
  for (const [at, value] of rounds.entries()) {
    const expected = Buffer.alloc(block, value % 251);
    expected.writeUInt32LE(value);
    assert.ok(bytes.subarray(at * block, (at + 1) * block).equals(expected), `block ${at} is whole`);
  }
  await until("what it was frozen with is gone", async () => (await leftOvers(api)).maps === 0);
  assert.deepEqual(api.ullage.listSnapshots(), []);
  // Parts of two moments would not fit together.
  assert.equal(await download(api, "/v1/volumes/v/content", file, "-r", "0-9"), 200);
  assert.equal((await stat(file)).size, blocks * block);
  const head = await api.call("/v1/volumes/v/content", { method: "HEAD" });
  const { etag, "accept-ranges": ranges, "content-length": length } = head.headers;
  assert.deepEqual([etag, ranges, length], [undefined, "none", String(blocks * block)]);
  await until("nothing is left", async () => {
    const { maps, described } = await leftOvers(api);
    return maps === 0 && described === 0;
  });
});

void test("of a hundred downloads that are broken off, nothing is left", patience, async (t) => {
  const api = await startApi(t);
  await api.ullage.createVolume({ name: "v", size: 64 << 20 });
  for (let at = 0; at < 64; at++) await put(api.ullage, "v", at << 20, randomBytes(1 << 20));
  await api.ullage.createSnapshot("v", "s");
  await until("its map is in a file", async () => (await leftOvers(api)).maps === 1);
  const paths = ["content", "content?format=qcow2", "snapshots/s/content"];
  const statuses = await Promise.all(
    Array.from({ length: 100 }, (_, n) => {
      const headers = n % 5 === 0 ? { accept: sparseContentType } : {};
      const path = `/v1/volumes/v/${paths[n % paths.length]}`;
      return new Promise<number>((resolve) => {
        const outgoing = request({ socketPath: api.socketPath, path, headers, agent: false }, (answer) => {
          if (n % 2 === 0) answer.once("data", () => outgoing.destroy());
          else outgoing.destroy();
          resolve(answer.statusCode ?? 0);
        });
        outgoing.on("error", () => resolve(0));
        outgoing.end();
        if (n % 7 === 0) outgoing.on("socket", (socket) => socket.once("connect", () => outgoing.destroy()));
      });
    }),
  );
  assert.ok(statuses.includes(200) && statuses.includes(503), [...new Set(statuses)].join(" "));
  await until("all is as before", async () => {
    const { maps, described } = await leftOvers(api);
    return maps === 1 && described === 1;
  });
  // The places are free again.
  for (let n = 0; n < 40; n++) {
    const { status } = await api.call("/v1/volumes/v/snapshots/s/content", { headers: { range: "bytes=999999999-" } });
    assert.equal(status, 416);
  }
  await api.ullage.removeSnapshot("v", "s");
  await api.ullage.removeVolume("v");
  assert.deepEqual(await leftOvers(api), { maps: 0, layers: 0, described: 0 });
});

void test(
  "a source that fails in the middle ends a download before its length, and a sparse one with the reason",
  patience,
  async (t) => {
    if (!requireTool(t, "curl")) return;
    await using source = await startHttpSource({ content: randomBytes(8 << 20) });
    const api = await startApi(t);
    await api.ullage.createVolume({ name: "v", from: { source: source.url }, settings: { hydrate: "off" } });
    await api.ullage.createSnapshot("v", "s");
    const path = "/v1/volumes/v/snapshots/s/content";
    const file = join(await temporaryDirectory(t), "file");
    assert.equal(await download(api, path, file, "-r", "0-1048575"), 206);
    source.onRequest = () => ({ kind: "status", status: 404 });
    const failure = (await download(api, path, file).catch((error: unknown) => error)) as { code: number };
    assert.equal(failure.code, 18, "curl: a part of the file was transferred");
    assert.ok((await stat(file)).size < 8 << 20);
    // Nothing could be read at all: a problem.
    const none = await curl("--unix-socket", api.socketPath, "-r", "6000000-", `http://localhost${path}`);
    assert.equal(refusal(none), "422 source-not-found");
    await download(api, path, file, "-H", `Accept: ${sparseContentType}`);
    assert.match((await readFile(file)).toString("latin1"), /\{"code":"source-not-found","detail":"[^]+\}$/);
  },
);

void test("removing the volume takes a download away; it does not wait for it", patience, async (t) => {
  const api = await startApi(t);
  await api.ullage.createVolume({ name: "v", size: 64 << 20 });
  for (let at = 0; at < 64; at++) await put(api.ullage, "v", at << 20, randomBytes(1 << 20));
  const outgoing = request({ socketPath: api.socketPath, path: "/v1/volumes/v/content", agent: false });
  outgoing.end();
  const [answer] = (await once(outgoing, "response")) as [NodeJS.ReadableStream & { complete: boolean }];
  await api.ullage.removeVolume("v");
  assert.deepEqual(await leftOvers(api), { maps: 0, layers: 0, described: 0 });
  answer.resume();
  await new Promise((resolve) => answer.once("close", resolve).once("error", () => undefined));
  assert.equal(answer.complete, false);
});

void test("what a download reads from stays while other volumes go", patience, async (t) => {
  const api = await startApi(t);
  for (const name of ["v", "other"]) await api.ullage.createVolume({ name, size: 1 << 20 });
  await put(api.ullage, "v", 0, Buffer.alloc(block, 1));
  const disk = await api.ullage.openContent("v", undefined, "raw", { address: "test", remote: false });
  await put(api.ullage, "v", 0, Buffer.alloc(block, 2));
  await api.ullage.removeVolume("other");
  const buffer = new IoBuffer(block);
  await disk.read(0, block, buffer, 0);
  assert.ok(buffer.bytes.equals(Buffer.alloc(block, 1)));
  await disk.close();
  assert.deepEqual(await leftOvers(api).then(({ maps, described }) => [maps, described]), [0, 0]);
});

void test("who does not take a download is cut off", patience, async (t) => {
  const api = await startTcpApi(t, { transferLimits: { bodyMs: 30_000, answerStallMs: 300 } });
  await api.ullage.createVolume({ name: "v", size: 64 << 20 });
  for (let at = 0; at < 64; at++) await put(api.ullage, "v", at << 20, randomBytes(1 << 20));
  const secret = await api.token("read");
  const socket = connect(api.port, "127.0.0.1");
  t.after(() => socket.destroy());
  socket.on("error", () => undefined);
  socket.pause();
  socket.write(`GET /v1/volumes/v/content HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ${secret}\r\n\r\n`);
  await until("it is cut off", () => api.log.some(({ message }) => /'v' ended early: .*took nothing/.test(message)));
  await until("nothing is left", async () => (await leftOvers(api)).maps === 0);
});

// ---- uploads -------------------------------------------------------------------------------------------------------

void test("a disk is uploaded, with and without a length; zeros take no space", patience, async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startApi(t);
  const directory = await temporaryDirectory(t);
  const [from, to] = [join(directory, "from"), join(directory, "to")];
  await writeFile(from, randomBytes(1_000_000));
  await truncate(from, 40 << 20);
  await writeFile(from, Buffer.from("end of the disk"), { flag: "a" });
  const known = await upload(api, "/v1/volumes/known/content", from);
  assert.equal(known.status, 201);
  assert.equal(known.headers["location"], "/v1/volumes/known");
  const unknown = await upload(api, "/v1/volumes/unknown/content", from, "-H", "Transfer-Encoding: chunked");
  assert.equal(unknown.status, 201);
  for (const [name, { text }] of Object.entries({ known, unknown })) {
    const { size, state, writtenBytes } = JSON.parse(text) as { size: number; state: string; writtenBytes: number };
    assert.deepEqual([size, state, writtenBytes], [(40 << 20) + 512, "ok", 246 * block], name);
    await download(api, `/v1/volumes/${name}/content`, to);
    const expected = Buffer.concat([await readFile(from), Buffer.alloc(512 - 15)]);
    assert.ok((await readFile(to)).equals(expected), name);
  }
});

void test("what an upload can't become is refused, and leaves nothing", patience, async (t) => {
  if (!requireTool(t, "curl", "qemu-img")) return;
  const api = await startApi(t);
  const directory = await temporaryDirectory(t);
  const [image, raw, empty] = ["image.qcow2", "raw", "empty"].map((name) => join(directory, name));
  await execute("qemu-img", ["create", "-q", "-f", "qcow2", image, "1M"]);
  await writeFile(raw, randomBytes(4 << 20));
  await writeFile(empty, "");
  const refused = await upload(api, "/v1/volumes/v/content", image);
  assert.equal(refusal(refused), "422 format-unsupported");
  assert.match(refused.text, /a qcow2 image.*--format raw/);
  assert.equal(refusal(await upload(api, "/v1/volumes/v/content", empty)), "400 bad-size");
  assert.equal(refusal(await upload(api, "/v1/volumes/a%20b/content", raw)), "400 bad-name");
  assert.equal(refusal(await upload(api, "/v1/volumes/v/content?format=vmdk", raw)), "400 bad-request");
  const json = await curl(
    "--unix-socket",
    api.socketPath,
    "-T",
    raw,
    "-H",
    "Content-Type: text/plain",
    "http://x/v1/volumes/v/content",
  );
  assert.equal(json.status, 415);
  const stream = join(directory, "stream");
  await writeFile(stream, sparseHeader(block));
  const type = ["-H", `Content-Type: ${sparseContentType}`];
  const sparse = await curl("--unix-socket", api.socketPath, ...type, "-T", stream, "http://x/v1/volumes/v/content");
  assert.equal(refusal(sparse), "400 transfer-cut");
  assert.deepEqual(await api.ullage.listVolumes(), []);
  assert.deepEqual(await readdir(join(api.ullage.health().dataDirectory, "layers")), []);
  const taken = await upload(api, "/v1/volumes/v/content?format=raw", image);
  assert.equal(taken.status, 201, "its bytes, as they are");
  assert.equal(refusal(await upload(api, "/v1/volumes/v/content", raw)), "409 name-taken");
});

void test(
  "a name that is taken is refused before the body comes; a body in the middle, while it comes",
  patience,
  async (t) => {
    const api = await startApi(t);
    await api.ullage.createVolume({ name: "taken", size: block });
    const send = (
      path: string,
      type: string,
      expect: boolean,
    ): Promise<{ status: number; sent: number; asked: boolean }> =>
      new Promise((resolve, reject) => {
        let sent = 0;
        let asked = false;
        const headers = {
          "content-type": type,
          "transfer-encoding": "chunked",
          ...(expect ? { expect: "100-continue" } : {}),
        };
        const outgoing = request(
          { socketPath: api.socketPath, path, method: "PUT", headers, agent: false },
          (answer) => {
            resolve({ status: answer.statusCode!, sent, asked });
            outgoing.destroy();
          },
        );
        outgoing.on("error", reject);
        const more = (): void => {
          while (!outgoing.destroyed && sent < 1 << 30) {
            sent += 65_536;
            if (!outgoing.write(Buffer.alloc(65_536, 1))) return void outgoing.once("drain", more);
          }
        };
        outgoing.once("continue", () => {
          asked = true;
          more();
        });
        if (!expect) more();
        outgoing.flushHeaders();
      });
    const plainType = "application/octet-stream";
    assert.deepEqual(await send("/v1/volumes/taken/content", plainType, true), { status: 409, sent: 0, asked: false });
    const blind = await send("/v1/volumes/taken/content", plainType, false);
    assert.ok(blind.status === 409 && blind.sent < 1 << 30, "it reads the answer while it sends");
    const wrong = await send("/v1/volumes/new/content", sparseContentType, true);
    assert.ok(wrong.status === 400 && wrong.asked && wrong.sent < 1 << 30);
  },
);

void test("a client that sends all before it reads comes to read why it was refused", patience, async (t) => {
  const api = await startTcpApi(t);
  const secret = await api.token("write");
  const body = Buffer.alloc(24 << 20, 1);
  body.write("QFI\xfb\0\0\0\x03", "latin1"); // what it is shows when some of it has been read
  const socket = connect(api.port, "127.0.0.1").pause();
  t.after(() => socket.destroy());
  socket.on("error", () => undefined);
  const head = `PUT /v1/volumes/v/content HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ${secret}\r\n`;
  socket.write(`${head}Content-Type: application/octet-stream\r\nContent-Length: ${body.length}\r\n\r\n`);
  const failure = await new Promise<unknown>((resolve) => socket.write(body, (error) => resolve(error ?? undefined)));
  assert.equal(failure, undefined, "all of it was taken");
  const [answer] = (await once(socket.resume(), "data")) as [Buffer];
  assert.match(answer.toString(), /^HTTP\/1.1 422 /);
});

void test("contents that are shorter or longer than they said, or go back, are refused", patience, async (t) => {
  const ullage = await openUllage(t);
  const send = (size: number, ...offsets: number[]): Promise<unknown> =>
    ullage.importVolume("v", {
      size,
      format: "auto",
      async *pieces() {
        for (const offset of offsets) yield await Promise.resolve({ offset, bytes: Buffer.alloc(block, 1) });
      },
    });
  await assert.rejects(send(2 * block, 0), { code: "transfer-cut" });
  await assert.rejects(send(2 * block, 0, block, 2 * block), { code: "transfer-cut" });
  await assert.rejects(send(2 * block, block, 0), { code: "transfer-damaged" });
  assert.deepEqual(await ullage.listVolumes(), []);
  await send(2 * block, 0, block);
});

void test("a client that goes away, or is silent, in the middle of an upload leaves nothing", patience, async (t) => {
  const api = await startTcpApi(t, { transferLimits: { bodyMs: 300, answerStallMs: 3000 } });
  const secret = await api.token("write");
  const dataDir = api.ullage.health().dataDirectory;
  const begin = async (name: string, lengthHeader: string): Promise<ReturnType<typeof connect>> => {
    const socket = connect(api.port, "127.0.0.1");
    socket.on("error", () => undefined);
    const head = `PUT /v1/volumes/${name}/content HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ${secret}\r\n`;
    socket.write(`${head}Content-Type: application/octet-stream\r\n${lengthHeader}\r\n\r\n`);
    return socket;
  };
  const gone = await begin("gone", `Content-Length: ${8 << 20}`);
  gone.write(randomBytes(4 << 20));
  await until("it is being made", async () => (await api.ullage.listVolumes()).length === 1);
  gone.destroy();
  const chunked = await begin("chunked", "Transfer-Encoding: chunked");
  chunked.write("100000\r\n");
  chunked.write(randomBytes(1 << 20));
  await until("it is being made, too", async () => (await readdir(join(dataDir, "layers"))).length > 0);
  chunked.end();
  const silent = await begin("silent", `Content-Length: ${8 << 20}`);
  silent.write(randomBytes(1 << 20));
  t.after(() => silent.destroy());
  // Slower than the time for other bodies, and never silent for long.
  const slow = await begin("slow", `Content-Length: ${10 * block}`);
  t.after(() => slow.destroy());
  let answered = "";
  slow.on("data", (chunk: Buffer) => (answered += chunk.toString()));
  for (let n = 0; n < 10; n++) {
    slow.write(Buffer.alloc(block, 1));
    await new Promise((resolve) => setTimeout(resolve, 60));
  }
  await until("the slow one has been made", () => answered.startsWith("HTTP/1.1 201"));
  await until(
    "the others are gone",
    async () => (await api.ullage.listVolumes()).map(({ name }) => name).join() === "slow",
  );
  assert.deepEqual(
    [(await readdir(join(dataDir, "layers"))).length, (await readdir(join(dataDir, "volumes"))).length],
    [1, 1],
  );
});

void test("uploads that break off at the same time are all cleared away", patience, async (t) => {
  const api = await startTcpApi(t);
  const secret = await api.token("write");
  const sockets = Array.from({ length: 30 }, (_, n) => {
    const socket = connect(api.port, "127.0.0.1");
    socket.on("error", () => undefined);
    const head = `PUT /v1/volumes/v${n}/content HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ${secret}\r\n`;
    socket.write(`${head}Content-Type: application/octet-stream\r\nContent-Length: ${1 << 20}\r\n\r\n`);
    socket.write(randomBytes(300_000));
    return socket;
  });
  await until("all are being made", async () => (await api.ullage.listVolumes()).length === sockets.length);
  for (const socket of sockets) socket.destroy();
  await until("none is left", async () => (await api.ullage.listVolumes()).length === 0);
  assert.deepEqual(await readdir(join(api.ullage.health().dataDirectory, "layers")), []);
});

void test("a repeated upload with its key makes no second volume", patience, async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startApi(t);
  const file = join(await temporaryDirectory(t), "file");
  await writeFile(file, randomBytes(100_000));
  const key = ["-H", "Idempotency-Key: k1"];
  const first = await upload(api, "/v1/volumes/v/content", file, ...key);
  const again = await upload(api, "/v1/volumes/v/content", file, ...key);
  assert.deepEqual([first.status, again.status], [201, 201]);
  assert.equal((JSON.parse(again.text) as { id: string }).id, (JSON.parse(first.text) as { id: string }).id);
  assert.equal(refusal(await upload(api, "/v1/volumes/other/content", file, ...key)), "422 request-key-reused");
  assert.equal((await api.ullage.listVolumes()).length, 1);
});

void test("a sparse upload may say why it ends, and that is the answer", patience, async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startApi(t);
  const file = join(await temporaryDirectory(t), "stream");
  const data = sparseData(Buffer.alloc(block, 1), 0, block, 0);
  const failure = { code: "cancelled", detail: "the client was told to stop" };
  await writeFile(file, Buffer.concat([sparseHeader(undefined), data, sparseFailure(block, failure)]));
  const send = (path: string): Promise<CurlAnswer> =>
    curl("--unix-socket", api.socketPath, "-T", file, "-H", `Content-Type: ${sparseContentType}`, `http://x${path}`);
  assert.equal(refusal(await send("/v1/volumes/v/content")), "422 cancelled");
  assert.deepEqual(await api.ullage.listVolumes(), []);
  await writeFile(file, Buffer.concat([sparseHeader(undefined), data, sparseEnd(3 * 2 ** 30)]));
  const made = await send("/v1/volumes/v/content");
  assert.equal((JSON.parse(made.text) as { size: number }).size, 3 * 2 ** 30, "larger than it was first thought to be");
});

void test(
  "reading takes scope read, uploading scope write; both are in the log with who did it",
  patience,
  async (t) => {
    if (!requireTool(t, "curl")) return;
    const api: TcpApi = await startTcpApi(t);
    const file = join(await temporaryDirectory(t), "file");
    await writeFile(file, randomBytes(block));
    const send = [...plain, "-T", file];
    assert.equal(refusal(await api.as("read", "/v1/volumes/v/content", ...send)), "403 forbidden");
    assert.equal((await api.as("write", "/v1/volumes/v/content", ...send)).status, 201);
    assert.equal((await api.as("read", "/v1/volumes/v/content", "-o", "/dev/null")).status, NaN);
    assert.equal(refusal(await curl(`${api.origin}/v1/volumes/v/content`)), "401 no-token");
    const audited = api.log.flatMap(({ fields: { event, caller, method, status } }) =>
      event === undefined ? [] : [[event, caller, method, status].join(" ")],
    );
    assert.deepEqual(audited, [
      "denied token:read-0 PUT 403",
      "change token:write-1 PUT 201",
      "download token:read-0 GET 200",
      "denied nobody GET 401",
    ]);
  },
);

// ---- ends ----------------------------------------------------------------------------------------------------------

void test("closing Ullage ends what is read and what is made", patience, async (t) => {
  const dataDir = join(await temporaryDirectory(t), "data");
  const ullage = await openUllage(t, { dataDir });
  await ullage.createVolume({ name: "v", size: 1 << 20 });
  const content = await ullage.openContent("v", undefined, "raw", { address: "test", remote: false });
  let asked = false;
  const made = ullage.importVolume("w", {
    size: 1 << 20,
    format: "auto",
    async *pieces(signal) {
      asked = true;
      yield { offset: 0, bytes: Buffer.alloc(block, 1) };
      await once(signal, "abort");
      throw new UllageError("transfer-cut", "it ended");
    },
  });
  made.catch(() => undefined);
  await until("it is asked for", () => asked);
  await ullage.close();
  await assert.rejects(made, { code: "transfer-cut" });
  await assert.rejects(content.read(0, 512, new IoBuffer(512), 0), { code: "cut-off" });
  const again = await openUllage(t, { dataDir });
  assert.deepEqual(
    (await again.listVolumes()).map(({ name }) => name),
    ["v"],
  );
  assert.deepEqual(await leftOvers({ ullage: again }).then(({ maps, described }) => [maps, described]), [0, 0]);
});

void test("a client that is killed in the middle of a download leaves nothing", patience, async (t: TestContext) => {
  if (!requireTool(t, "curl")) return;
  const api = await startApi(t);
  await api.ullage.createVolume({ name: "v", size: 64 << 20 });
  for (let at = 0; at < 64; at++) await put(api.ullage, "v", at << 20, randomBytes(1 << 20));
  const child = spawn(
    "curl",
    ["-sS", "--unix-socket", api.socketPath, "--limit-rate", "1M", "http://x/v1/volumes/v/content"],
    {
      stdio: ["ignore", "pipe", "inherit"],
    },
  );
  await once(child.stdout, "data");
  assert.equal((await leftOvers(api)).described, 1, "it is frozen");
  child.kill("SIGKILL");
  await until("nothing is left", async () => (await leftOvers(api)).described === 0);
});
