import assert from "node:assert/strict";
import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { test, type TestContext } from "node:test";
import Fastify from "fastify";
import { sparseContentStream } from "../../src/api/content-stream.ts";
import { ApiListener } from "../../src/api/api-listener.ts";
import { OpenCalls } from "../../src/api/open-calls.ts";
import { problemOf } from "../../src/api/problems.ts";
import { Tokens } from "../../src/api/tokens.ts";
import { UllageError } from "../../src/base/errors.ts";
import type { VolumeContent } from "../../src/daemon/volumes/contents.ts";
import { readSparse } from "../../src/image/sparse-stream.ts";
import { atEnd, temporaryDirectory } from "../daemon/support.ts";
import { requireTool } from "../support/tools.ts";
import { curl, refusal, startTcpApi } from "./tcp-support.ts";

/** What does not happen fails the test instead of holding it up; far more than it takes on a loaded machine. */
const patience = { timeout: 60_000 };

/** curl's exit code when the connection ended before the announced length. */
const partialFile = 18;

/** curl at work: what it has got so far, and its end. */
class Curl {
  received = "";
  readonly child: ChildProcess;
  readonly code: Promise<number | null>;
  #wake: () => void = () => undefined;

  constructor(t: TestContext, ...args: string[]) {
    this.child = spawn("curl", ["-sS", "-N", "-H", "Expect:", ...args], { stdio: ["pipe", "pipe", "ignore"] });
    this.child.stdin!.on("error", () => undefined);
    this.child.stdout!.setEncoding("latin1").on("data", (text: string) => {
      this.received = (this.received + text).slice(-100_000);
      this.#wake();
    });
    this.code = new Promise((resolve) => this.child.once("close", resolve));
    atEnd(t, async () => {
      this.child.kill("SIGKILL");
      await this.code;
    });
  }

  async something(): Promise<void> {
    while (this.received === "") await new Promise<void>((resolve) => (this.#wake = resolve));
  }
}

const bearer = (secret: string): string[] => ["-H", `Authorization: Bearer ${secret}`];

void test(
  "events end when the token is removed or expires, and say why; those of others go on",
  patience,
  async (t) => {
    if (!requireTool(t, "curl")) return;
    const api = await startTcpApi(t);
    const listen = (secret: string): Curl => new Curl(t, ...bearer(secret), `${api.origin}/v1/events`);
    const removed = listen(await api.token("read"));
    const expiring = listen(await api.token("read", 3600));
    const staying = listen(await api.token("read"));
    await Promise.all([removed.something(), expiring.something(), staying.something()]);
    await api.tokens.remove("read-0");
    assert.equal(await removed.code, 0, "a proper end");
    assert.match(
      removed.received,
      /event: closed\ndata: \{"code":"bad-token","detail":"the token 'read-0' was removed".*\}\n\n$/,
    );
    api.advance(3_600_000);
    assert.equal(await expiring.code, 0);
    assert.match(expiring.received, /event: closed\ndata: \{"code":"expired-token",.*\}\n\n$/);
    await api.ullage.createVolume({ name: "v", size: 4096 });
    while (!staying.received.includes("volume-created")) await new Promise((resolve) => setTimeout(resolve, 20));
    assert.doesNotMatch(staying.received, /event: closed/);
  },
);

void test("a download is cut when its token is removed, also one whose client takes nothing", patience, async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startTcpApi(t);
  await api.ullage.createVolume({ name: "v", size: 2 ** 40 });
  const secrets = [await api.token("read"), await api.token("read")];
  const downloads = secrets.map((secret) => new Curl(t, ...bearer(secret), `${api.origin}/v1/volumes/v/content`));
  await Promise.all(downloads.map((each) => each.something()));
  downloads[1].child.stdout!.pause();
  for (const { name } of api.tokens.list()) await api.tokens.remove(name);
  assert.equal(await downloads[0].code, partialFile);
  while (!api.log.some(({ message }) => message.includes("ended early"))) {
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  // The server's end of the second one is gone while its client still looks away: nothing holds the volume any more.
  await api.ullage.removeVolume("v", { force: false, snapshots: false });
  downloads[1].child.stdout!.resume();
  assert.equal(await downloads[1].code, partialFile);
});

void test("a download without its zeros says why it ends", patience, async () => {
  const revoking = new AbortController();
  let closed = false;
  const content = {
    size: 1_000_000_000,
    survey: async () => ({ bytes: 1_000_000_000, next: (at: number) => ({ offset: at, length: 1_000_000_000 - at }) }),
    read: async (_offset: number, length: number, buffer: { bytes: Buffer }) => {
      buffer.bytes.fill(1, 0, length);
    },
    close: async () => {
      closed = true;
    },
  } as unknown as VolumeContent;
  const stream = sparseContentStream(content, {
    stallMs: 30_000,
    onFailure: () => undefined,
    revoked: revoking.signal,
  });
  const ended = once(stream, "close");
  const { pieces } = await readSparse(stream);
  let count = 0;
  await assert.rejects(
    async () => {
      for await (const { bytes } of pieces) {
        if (bytes.length > 0 && ++count === 3)
          revoking.abort(new UllageError("bad-token", "the token 'a' was removed"));
      }
    },
    { code: "bad-token" },
  );
  assert.ok(count < 10);
  stream.resume();
  await ended;
  assert.ok(closed);
});

void test("an upload is answered when its token is removed, and makes nothing", patience, async (t) => {
  if (!requireTool(t, "curl")) return;
  const api = await startTcpApi(t);
  const upload = new Curl(
    t,
    "-i",
    ...bearer(await api.token("write")),
    "-T",
    ".", // standard input, without waiting for it
    "-H",
    "Content-Type: application/octet-stream",
    `${api.origin}/v1/volumes/v/content`,
  );
  upload.child.stdin!.on("error", () => undefined); // it may be refused before it has taken all of it
  upload.child.stdin!.write(Buffer.alloc(1_000_000, 1));
  while ((await api.ullage.listVolumes()).length === 0) await new Promise((resolve) => setTimeout(resolve, 20));
  await api.tokens.remove("write-0");
  await upload.code;
  assert.match(upload.received, /^HTTP\/1\.1 401 /m);
  assert.match(upload.received, /"code":"bad-token"/);
  while ((await api.ullage.listVolumes()).length > 0) await new Promise((resolve) => setTimeout(resolve, 20));
});

void test("a request that is not answered yet is answered 401, and told that it may be done", patience, async (t) => {
  if (!requireTool(t, "curl")) return;
  const tokens = await Tokens.open(await temporaryDirectory(t));
  const { token } = await tokens.create("a", "write", null);
  const calls = new OpenCalls(tokens, 5);
  const app = Fastify();
  app.decorateRequest("revoked", undefined);
  app.setErrorHandler((error, _request, reply) => {
    const answer = problemOf(error);
    return reply.code(answer.status).type("application/problem+json").send(answer);
  });
  let finish: () => void = () => undefined;
  let finished = false;
  const arrived = new Promise<void>((resolve) => {
    app.get("/slow", async (request, reply) => {
      calls.note(request, reply, token);
      resolve();
      await new Promise<void>((done) => (finish = done));
      finished = true;
      return reply.code(201).header("location", "/x").send("done");
    });
  });
  await app.ready();
  const listener = await ApiListener.listen({ kind: "tcp", host: "127.0.0.1", port: 0 }, app.routing.bind(app));
  atEnd(t, () => listener.close());
  const { port } = listener.address as { port: number };
  const asked = curl(`http://127.0.0.1:${port}/slow`);
  await arrived;
  await tokens.remove("a");
  const answer = await asked;
  assert.equal(refusal(answer), "401 bad-token");
  assert.match(answer.text, /may be done all the same/);
  assert.match(answer.headers["www-authenticate"], /invalid_token/);
  finish();
  await new Promise((resolve) => setImmediate(resolve));
  assert.ok(finished, "and the server is well");
  assert.equal((await curl(`http://127.0.0.1:${port}/nothing`)).status, 404);
});
