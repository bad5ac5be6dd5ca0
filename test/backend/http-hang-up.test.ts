import assert from "node:assert/strict";
import { once } from "node:events";
import { type AddressInfo, createServer, type Socket } from "node:net";
import { test } from "node:test";
import type { Dispatcher } from "undici";
import type { Sink } from "../../src/backend/backend.ts";
import { exchange } from "../../src/backend/http/http-exchange.ts";
import { parseTarget } from "../../src/backend/http/http-target.ts";
import { describeError, SourceError } from "../../src/base/errors.ts";
import { httpBackend, pattern } from "./support.ts";

/*
 * Servers that hang up behind their answer, while its bytes still wait here for a sink that takes its time.
 */

const content = pattern(1 << 20);
const etag = '"one"';

type Framing = "length" | "chunks" | "HTTP/1.0";
type End = "whole" | "short" | "reset";

/** The head of the answer and its body; `short` breaks off in the middle. */
function answerTo(request: string, framing: Framing, end: End): Buffer {
  const [, first, last] = /range: bytes=(\d+)-(\d+)/i.exec(request)!.map(Number);
  const body = content.subarray(first, last + 1);
  const head = [
    `HTTP/${framing === "HTTP/1.0" ? "1.0" : "1.1"} 206 Partial Content`,
    `ETag: ${etag}`,
    `Content-Range: bytes ${first}-${last}/${content.length}`,
    "Connection: close",
    framing === "chunks" ? "Transfer-Encoding: chunked" : `Content-Length: ${body.length}`,
  ].join("\r\n");
  const sent = end === "short" ? body.subarray(0, body.length - 1000) : body;
  const start = Buffer.from(`${head}\r\n\r\n`);
  if (framing !== "chunks") return Buffer.concat([start, sent]);
  const chunks: Buffer[] = [start];
  for (let at = 0; at < sent.length; at += 20_000) {
    const chunk = sent.subarray(at, at + 20_000);
    chunks.push(Buffer.from(`${chunk.length.toString(16)}\r\n`), chunk, Buffer.from("\r\n"));
  }
  if (end !== "short") chunks.push(Buffer.from("0\r\n\r\n"));
  return Buffer.concat(chunks);
}

function hangUp(socket: Socket, answer: Buffer, end: End): void {
  if (end === "reset") socket.write(answer, () => setTimeout(() => socket.resetAndDestroy(), 20));
  else socket.end(answer);
}

/** Takes its time over every chunk, and wants no other one meanwhile. */
class SlowSink {
  readonly #failAt: number;
  readonly #chunks: Buffer[] = [];
  #bytes = 0;
  #busy = false;
  /** A chunk came while it was busy. */
  pressed = false;

  /** @param failAt fails with the chunk that has the byte */
  constructor(failAt = Infinity) {
    this.#failAt = failAt;
  }

  readonly sink: Sink = async (chunk) => {
    this.pressed ||= this.#busy;
    this.#busy = true;
    this.#chunks.push(Buffer.from(chunk));
    this.#bytes += chunk.length;
    await new Promise((resolve) => setTimeout(resolve, 40));
    this.#busy = false;
    if (this.#bytes > this.#failAt) throw new Error("the sink is full");
  };

  get bytes(): Buffer {
    return Buffer.concat(this.#chunks);
  }
}

for (const framing of ["length", "chunks", "HTTP/1.0"] as const) {
  for (const end of ["whole", "short", "reset"] as const) {
    const name = `an answer by ${framing} whose server hangs up (${end}) while the sink is busy`;
    void test(`${name} is all of it in order, or a failed read`, { timeout: 30_000 }, async () => {
      let wanted: End = "whole";
      const server = createServer((socket) => {
        socket.on("error", () => undefined);
        socket.once("data", (request) => hangUp(socket, answerTo(request.toString("latin1"), framing, wanted), wanted));
      });
      server.listen(0, "127.0.0.1");
      await once(server, "listening");
      try {
        const { port } = server.address() as AddressInfo;
        await using backend = httpBackend(`http://127.0.0.1:${port}/disk.img`);
        const { identity } = await backend.probe(1);
        wanted = end;
        for (const length of [1000, 64 * 1024, 150_000, 300_000]) {
          const slow = new SlowSink();
          const reading = backend.read(identity, 5, length, slow.sink);
          const failure = await reading.then(
            () => undefined,
            (error: unknown) => error,
          );
          assert.equal(slow.pressed, false);
          if (failure === undefined) {
            assert.notEqual(end, "short");
            assert.deepEqual(slow.bytes, content.subarray(5, 5 + length));
            // The next answer may be reset earlier.
            const full = new SlowSink(length - 1);
            const refused = await backend.read(identity, 5, length, full.sink).then(
              () => undefined,
              (error: unknown) => error as Error,
            );
            if (end !== "reset" || full.bytes.length === length)
              assert.match(refused?.message ?? "", /the sink is full/);
            else assert.ok(refused instanceof SourceError && refused.transient, describeError(refused));
          } else {
            assert.notEqual(end, "whole", describeError(failure));
            assert.ok(failure instanceof SourceError && failure.transient, describeError(failure));
            assert.deepEqual(slow.bytes, content.subarray(5, 5 + slow.bytes.length));
          }
        }
      } finally {
        server.close();
      }
    });
  }
}

void test("what the HTTP library hands over although it was told to pause waits for the sink, in order", async () => {
  const controller = { pause: () => undefined, resume: () => undefined, abort: () => undefined };
  const dispatch = (_: Dispatcher.DispatchOptions, handler: Dispatcher.DispatchHandler): boolean => {
    const told = controller as unknown as Dispatcher.DispatchController;
    handler.onRequestStart?.(told, {});
    handler.onResponseStart?.(told, 206, {});
    for (let at = 0; at < 3000; at += 1000) handler.onResponseData?.(told, content.subarray(at, at + 1000));
    handler.onResponseEnd?.(told, {});
    return true;
  };
  const request = { target: parseTarget("http://disk.test/"), headers: {}, length: 3000, signal: undefined };
  const limits = { idleTimeoutMs: 60_000, minBytesPerSecond: 1 };
  const slow = new SlowSink();
  const plan = { kind: "exactly", length: 3000, sink: slow.sink } as const;
  await exchange({ dispatch } as unknown as Dispatcher, request, limits, () => plan);
  assert.equal(slow.pressed, false);
  assert.deepEqual(slow.bytes, content.subarray(0, 3000));
});
