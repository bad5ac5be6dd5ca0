import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { type AddressInfo, type Socket, connect, createServer } from "node:net";
import { createSecureServer } from "node:http2";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { getCACertificates, setDefaultCACertificates } from "node:tls";
import { type Fault, startHttpSource } from "../support/http-source.ts";
import { requireTool } from "../support/tools.ts";
import { collect, failsWith, httpBackend, pattern, readBytes, turns } from "./support.ts";

const content = pattern(500_000);
const offset = 1000;
const length = 100_000;

/** Faults that a read meets, and what it must say; `sees` is how many bytes may reach the sink before it is known. */
const faults: { name: string; fault: Fault; code: string; transient: boolean; sees: number; message?: RegExp }[] = [
  ...[500, 502, 503, 429, 408].map((status) => ({
    name: `a ${status}`,
    fault: { kind: "status", status } as const,
    code: "source-busy",
    transient: true,
    sees: 0,
    message: new RegExp(`answered ${status}`),
  })),
  ...[404, 410].map((status) => ({
    name: `a ${status}`,
    fault: { kind: "status", status } as const,
    code: "source-not-found",
    transient: false,
    sees: 0,
  })),
  ...[401, 403].map((status) => ({
    name: `a ${status}`,
    fault: { kind: "status", status } as const,
    code: "source-denied",
    transient: false,
    sees: 0,
  })),
  ...[204, 304, 400].map((status) => ({
    name: `a ${status}`,
    fault: { kind: "status", status } as const,
    code: "source-status",
    transient: false,
    sees: 0,
  })),
  {
    name: "a 416 although the range is inside",
    fault: { kind: "status", status: 416, headers: { "content-range": "bytes 1000-100999/500000" } },
    code: "source-bad-answer",
    transient: true,
    sees: 0,
  },
  {
    name: "a 416 of an object that has shrunk",
    fault: { kind: "status", status: 416, headers: { "content-range": "bytes */500" } },
    code: "source-changed",
    transient: false,
    sees: 0,
  },
  {
    name: "a 200 that ignores Range",
    fault: { kind: "ignore-range" },
    code: "source-no-ranges",
    transient: false,
    sees: 0,
    message: /answered a range request with 200 instead of 206/,
  },
  {
    name: "a body announced short",
    fault: { kind: "short", bytes: 1 },
    code: "source-bad-answer",
    transient: true,
    sees: 0,
  },
  {
    name: "a body announced long",
    fault: { kind: "long", bytes: 1 },
    code: "source-bad-answer",
    transient: true,
    sees: 0,
  },
  {
    name: "a short body in chunks",
    fault: { kind: "short", bytes: 1, chunked: true },
    code: "source-bad-answer",
    transient: true,
    sees: length - 1,
    message: /sent 99999 bytes where 100000 were asked for/,
  },
  {
    name: "a long body in chunks",
    fault: { kind: "long", bytes: 1, chunked: true },
    code: "source-bad-answer",
    transient: true,
    sees: length,
    message: /sent more than the 100000 bytes asked for/,
  },
  {
    name: "a body cut short",
    fault: { kind: "cut", after: 70_000 },
    code: "source-unreachable",
    transient: true,
    sees: 70_000,
  },
  ...[
    null,
    "bytes 1001-101000/500000",
    "bytes 1000-100998/500000",
    "bytes 1000-100999/*",
    "bytes */500000",
    "pages 1000-100999/500000",
    "bytes 1000-100999/99999999999999999999",
    "nonsense",
  ].map((value) => ({
    name: `Content-Range ${value}`,
    fault: { kind: "content-range", value } as const,
    code: "source-bad-answer",
    transient: true,
    sees: 0,
  })),
  {
    name: "a Content-Range of another size",
    fault: { kind: "content-range", value: "bytes 1000-100999/500001" },
    code: "source-changed",
    transient: false,
    sees: 0,
  },
  {
    name: "another ETag in mid-life",
    fault: { kind: "headers", headers: { etag: '"second"' } },
    code: "source-changed",
    transient: false,
    sees: 0,
  },
  {
    name: "a compressed body",
    fault: { kind: "headers", headers: { "content-encoding": "gzip" } },
    code: "source-encoded",
    transient: false,
    sees: 0,
    message: /Content-Encoding gzip/,
  },
  { name: "a reset before the answer", fault: { kind: "reset" }, code: "source-unreachable", transient: true, sees: 0 },
  {
    name: "a reset in mid-body",
    fault: { kind: "reset", after: 70_000 },
    code: "source-unreachable",
    transient: true,
    sees: 70_000,
  },
  {
    name: "a stall before the answer",
    fault: { kind: "stall" },
    code: "source-timeout",
    transient: true,
    sees: 0,
    message: /sent nothing for 1000 ms/,
  },
  {
    name: "a stall in mid-body",
    fault: { kind: "stall", after: 70_000 },
    code: "source-timeout",
    transient: true,
    sees: 70_000,
    message: /sent nothing for 1000 ms/,
  },
  {
    name: "a trickle that never pauses for long",
    fault: { kind: "trickle", bytes: 10, everyMs: 10 },
    code: "source-timeout",
    transient: true,
    sees: length - 1,
    message: /sent only \d+ bytes in 1100 ms/,
  },
  {
    name: "a redirect without a Location",
    fault: { kind: "status", status: 302 },
    code: "source-redirect",
    transient: false,
    sees: 0,
  },
];

for (const { name, fault, code, transient, sees, message } of faults) {
  void test(`${name} fails that read with ${code}, and the next one works`, { timeout: 20_000 }, async () => {
    await using source = await startHttpSource({ content });
    // Patient where no time-out is expected: a busy machine must not make one.
    const limits = code === "source-timeout" ? { idleTimeoutMs: 1000, minBytesPerSecond: length * 10 } : {};
    await using backend = httpBackend(source.url, limits);
    const { identity } = await backend.probe(1);
    source.inject(fault);
    const collector = collect();
    const error = await failsWith(code, backend.read(identity, offset, length, collector.sink));
    assert.equal(error.transient, transient);
    assert.match(error.message, message ?? /./);
    assert.match(error.message, new RegExp(`127.0.0.1:${source.port}/disk.img`));
    assert.ok(collector.bytes().length <= sees, `the sink saw ${collector.bytes().length} bytes`);
    assert.deepEqual(await readBytes(backend, identity, offset, length), content.subarray(offset, offset + length));
  });
}

void test("probe meets the same faults with the same errors", { timeout: 20_000 }, async () => {
  await using source = await startHttpSource({ content });
  await using backend = httpBackend(source.url, { idleTimeoutMs: 1000 });
  const expected: [Fault, string][] = [
    [{ kind: "status", status: 503 }, "source-busy"],
    [{ kind: "status", status: 404 }, "source-not-found"],
    [{ kind: "status", status: 204 }, "source-status"],
    [{ kind: "status", status: 416 }, "source-status"],
    [{ kind: "content-range", value: null }, "source-bad-answer"],
    [{ kind: "content-range", value: "bytes 0-4095/*" }, "source-no-size"],
    [{ kind: "content-range", value: "bytes 1-4096/500000" }, "source-bad-answer"],
    [{ kind: "short", bytes: 1 }, "source-bad-answer"],
    [{ kind: "headers", headers: { "content-encoding": "gzip" } }, "source-encoded"],
    [{ kind: "reset" }, "source-unreachable"],
    [{ kind: "stall" }, "source-timeout"],
    [{ kind: "cut", after: 100 }, "source-unreachable"],
  ];
  for (const [fault, code] of expected) {
    source.inject(fault);
    await failsWith(code, backend.probe(4096));
  }
  assert.equal((await backend.probe(4096)).head.length, 4096);
});

void test("a stream that ends early, is too long or not the pinned object fails", async () => {
  await using source = await startHttpSource({ content });
  await using backend = httpBackend(source.url, { idleTimeoutMs: 1000 });
  const { identity } = await backend.probe(1);
  const expected: [Fault, string][] = [
    [{ kind: "short", bytes: 1 }, "source-changed"],
    [{ kind: "short", bytes: 1, chunked: true }, "source-bad-answer"],
    [{ kind: "long", bytes: 1, chunked: true }, "source-bad-answer"],
    [{ kind: "cut", after: 1000 }, "source-unreachable"],
    [{ kind: "stall", after: 1000 }, "source-timeout"],
    [{ kind: "headers", headers: { etag: '"second"' } }, "source-changed"],
    [{ kind: "status", status: 503 }, "source-busy"],
  ];
  for (const [fault, code] of expected) {
    source.inject(fault);
    await failsWith(
      code,
      backend.stream(identity, () => undefined),
    );
  }
});

void test("a server that is gone is source-unreachable, and works again when it is back", async () => {
  await using source = await startHttpSource({ content });
  await using backend = httpBackend(source.url);
  const { identity } = await backend.probe(1);
  await source.pause();
  const error = await failsWith("source-unreachable", readBytes(backend, identity, 0, 10));
  assert.match(error.message, /cannot be reached/);
  assert.equal(error.transient, true);
  await failsWith("source-unreachable", readBytes(backend, identity, 0, 10));
  await source.resume();
  assert.deepEqual(await readBytes(backend, identity, 0, 10), content.subarray(0, 10));
});

void test("connections that the server closed while they were idle do no harm", async () => {
  await using source = await startHttpSource({ content });
  await using backend = httpBackend(source.url);
  const { identity } = await backend.probe(1);
  await Promise.all([1, 2, 3].map((n) => readBytes(backend, identity, n, 10)));
  await source.pause();
  await source.resume();
  await turns(); // the ends of the connections arrive before anything is sent on them
  assert.deepEqual(await readBytes(backend, identity, 0, 10), content.subarray(0, 10));
});

void test("what does not speak HTTP is an error", async () => {
  const server = createServer((socket) => void socket.end("SSH-2.0-OpenSSH_9.2\r\n")).listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  try {
    await using backend = httpBackend(`http://127.0.0.1:${port}/disk.img`);
    await failsWith("source-bad-answer", backend.probe(1));
  } finally {
    server.close();
  }
});

void test("a server that never takes the connection is a time-out", { timeout: 30_000 }, async (t) => {
  if (!requireTool(t, "python3")) return;
  // A full backlog: the kernel drops further handshakes silently.
  const script =
    "import socket,time\ns=socket.socket()\ns.bind(('127.0.0.1',0))\ns.listen(0)\nprint(s.getsockname()[1],flush=True)\ntime.sleep(30)";
  const server = spawn("python3", ["-c", script], { stdio: ["ignore", "pipe", "inherit"] });
  const fillers: Socket[] = [];
  try {
    const [line] = (await once(server.stdout, "data")) as [Buffer];
    const port = Number(line.toString());
    for (let n = 0; n < 3; n++) fillers.push(connect(port, "127.0.0.1").on("error", () => undefined));
    await new Promise((resolve) => setTimeout(resolve, 300));
    await using backend = httpBackend(`http://127.0.0.1:${port}/disk.img`, { connectTimeoutMs: 300 });
    const error = await failsWith("source-timeout", backend.probe(1));
    assert.match(error.message, /no connection in time/);
  } finally {
    for (const filler of fillers) filler.destroy();
    server.kill("SIGKILL");
  }
});

void test("https works with a known authority, by HTTP/1.1 though the server prefers 2; without one it is source-tls, not retried", async (t) => {
  if (!requireTool(t, "certtool")) return;
  const directory = await mkdtemp(join(tmpdir(), "ullage-tls-"));
  const authorities = getCACertificates("default");
  const server = createSecureServer({ allowHTTP1: true });
  const versions = new Set<string>();
  try {
    const run = (...args: string[]): void => void execFileSync("certtool", args, { cwd: directory, stdio: "pipe" });
    const template = 'cn = "localhost"\ndns_name = "localhost"\nexpiration_days = 2\nca\n';
    await writeFile(join(directory, "template"), template);
    run("--generate-privkey", "--key-type", "ecdsa", "--outfile", "key.pem");
    run("--generate-self-signed", "--load-privkey", "key.pem", "--template", "template", "--outfile", "cert.pem");
    const [key, cert] = await Promise.all(
      ["key.pem", "cert.pem"].map((name) => readFile(join(directory, name), "utf8")),
    );
    server.setSecureContext({ key, cert });
    server.on("request", ({ httpVersion }, response) => {
      versions.add(httpVersion);
      response.writeHead(206, { etag: '"tls"', "content-range": "bytes 0-0/10", "content-length": "1" }).end("x");
    });
    await once(server.listen(0, "127.0.0.1"), "listening");
    const url = `https://localhost:${(server.address() as AddressInfo).port}/disk.img`;
    {
      await using backend = httpBackend(url);
      const error = await failsWith("source-tls", backend.probe(1));
      assert.equal(error.transient, false);
    }
    setDefaultCACertificates([...authorities, cert]);
    await using backend = httpBackend(url);
    assert.equal((await backend.probe(1)).identity.version, 'etag:"tls"');
    assert.deepEqual([...versions], ["1.1"]);
  } finally {
    setDefaultCACertificates(authorities);
    server.close();
    await rm(directory, { recursive: true });
  }
});
