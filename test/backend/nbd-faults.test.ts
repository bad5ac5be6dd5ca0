import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import net from "node:net";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { temporaryDirectory } from "../daemon/support.ts";
import { type NbdSource, startNbdkit, startQemuNbd } from "../support/nbd-source.ts";
import { requireTool } from "../support/tools.ts";
import { between, MiB, nbdBackend } from "./nbd-support.ts";
import { failsWith, openBackend, pattern, readBytes } from "./support.ts";

/** A server that says this to everyone, and then nothing. */
async function saying(t: TestContext, words: Buffer | "close"): Promise<string> {
  const path = join(await temporaryDirectory(t), "saying.sock");
  const sockets = new Set<net.Socket>();
  const server = net.createServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => undefined);
    socket.resume();
    if (words === "close") socket.destroy();
    else socket.write(words);
  });
  server.listen(path);
  t.after(() => {
    sockets.forEach((socket) => socket.destroy());
    server.close();
  });
  return `nbd+unix:///?socket=${path}`;
}

const content = pattern(8 * MiB);

/** With the same content: nbdkit 1.32 aborts now and then when a client goes in the middle of things. */
async function robust(t: TestContext): Promise<NbdSource> {
  const file = join(await temporaryDirectory(t), "disk");
  writeFileSync(file, content);
  return startQemuNbd(t, "-f", "raw", "-r", file);
}

const greeting = Buffer.concat([Buffer.from("NBDMAGICIHAVEOPT"), Buffer.from([0, 3])]);
const short = { connectTimeoutMs: 400, idleTimeoutMs: 400 };

function optionReply(option: number, type: number, length: number): Buffer {
  const reply = Buffer.alloc(20);
  reply.writeBigUInt64BE(0x3e889045565a9n, 0);
  reply.writeUInt32BE(option, 8);
  reply.writeUInt32BE(type, 12);
  reply.writeUInt32BE(length, 16);
  return reply;
}

void test("a server that does not answer, greets with rubbish, lies about lengths or floods is left, in bounded time and memory", async (t) => {
  const silent: [string, Buffer | "close"][] = [
    ["source-timeout", Buffer.alloc(0)],
    ["source-timeout", greeting],
    ["source-timeout", Buffer.concat([greeting, optionReply(8, 1, 60_000)])],
    ["source-bad-answer", Buffer.alloc(64, "x")],
    ["source-bad-answer", Buffer.from("NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53".padEnd(152, "\0"), "latin1")],
    ["source-bad-answer", Buffer.concat([greeting, optionReply(8, 1, 0xffffffff)])],
    ["source-bad-answer", Buffer.concat([greeting, optionReply(9, 1, 0)])],
    ["source-bad-answer", Buffer.concat([greeting, optionReply(8, 0x80000001, 0), optionReply(7, 1, 0)])],
    [
      "source-bad-answer",
      Buffer.concat([
        greeting,
        optionReply(8, 0x80000001, 0),
        ...Array.from({ length: 101 }, () => optionReply(7, 3, 0)),
      ]),
    ],
    ["source-bad-answer", Buffer.concat([greeting, Buffer.alloc(MiB)])],
    ["source-unreachable", "close"],
  ];
  for (const [code, words] of silent) {
    // Patient where no time-out is expected: a busy machine must not make one.
    await using backend = nbdBackend(await saying(t, words), code === "source-timeout" ? short : {});
    assert.equal((await failsWith(code, backend.probe(1))).transient, true);
  }
  await using nobody = nbdBackend(`nbd+unix:///?socket=${join(await temporaryDirectory(t), "nobody")}`);
  await failsWith("source-unreachable", nobody.probe(1));
});

void test("a stream that is cut, changed or stops in the middle fails those reads and no others", async (t) => {
  if (!requireTool(t, "nbdkit")) return;
  const good = await robust(t);
  for (const [name, code, meddle] of [
    ["cut", "source-unreachable", (_: Buffer, client: net.Socket) => void client.destroy()],
    ["rubbish", "source-unreachable", (chunk: Buffer) => Buffer.alloc(chunk.length, 0xab)],
    ["silence", "source-timeout", () => undefined],
    [
      "a bit of it",
      "source-unreachable",
      (chunk: Buffer, client: net.Socket) => void client.end(chunk.subarray(0, 100)),
    ],
  ] as const) {
    let bad = false;
    const uri = await between(t, good.socket, (chunk, client) => (bad ? (meddle(chunk, client) ?? undefined) : chunk));
    await using backend = nbdBackend(uri, {
      idleTimeoutMs: name === "silence" ? 2000 : 15_000,
      minBytesPerSecond: 1024,
    });
    const { identity } = await backend.probe(1);
    bad = true;
    const failure = await failsWith(code, readBytes(backend, identity, 0, 4 * MiB));
    if (name === "silence") assert.match(failure.message, /sent nothing for 2000 ms/);
    bad = false;
    const again = (): Promise<Buffer> => readBytes(backend, identity, 0, 8 * MiB);
    // A connection that was being made meanwhile may still fail.
    assert.ok((await again().catch(again).catch(again)).equals(content), name);
  }
});

void test("a server that trickles is given up on: bytes now and then are no sign of life", async (t) => {
  if (!requireTool(t, "nbdkit")) return;
  const good = await robust(t);
  let bad = false;
  const uri = await between(t, good.socket, (chunk, client) => {
    if (!bad) return chunk;
    let at = 0;
    const timer = setInterval(() => client.write(chunk.subarray(at, ++at)), 50);
    client.on("close", () => clearInterval(timer));
    return undefined;
  });
  await using backend = nbdBackend(uri, { idleTimeoutMs: 2000, minBytesPerSecond: 1e9 });
  const { identity } = await backend.probe(1);
  bad = true;
  const failure = await failsWith("source-timeout", readBytes(backend, identity, 0, 1000));
  assert.match(failure.message, /did not answer/);
});

void test("a slow server within its time is waited for; who does not want to wait leaves at once", async (t) => {
  if (!requireTool(t, "nbdkit")) return;
  const source = await startNbdkit(t, "--filter=delay", "memory", "8M", "rdelay=300ms");
  await using backend = nbdBackend(source.uri());
  const { identity } = await backend.probe(1);
  const leaving = new AbortController();
  const left = readBytes(backend, identity, 0, MiB, { signal: leaving.signal });
  const stays = readBytes(backend, identity, 0, MiB);
  leaving.abort(new Error("no longer wanted"));
  await assert.rejects(left, /no longer wanted/);
  assert.ok((await stays).equals(Buffer.alloc(MiB)));
});

void test("a sink that fails ends its read, and one that is slow holds up nobody else", async (t) => {
  if (!requireTool(t, "nbdkit")) return;
  const source = await startNbdkit(t, "pattern", "32M");
  await using backend = nbdBackend(source.uri());
  const { identity } = await backend.probe(1);
  const failing = backend.read(identity, 0, 8 * MiB, () => {
    throw new Error("the disk is full");
  });
  await assert.rejects(failing, /the disk is full/);
  const release = Promise.withResolvers<void>();
  let slowBytes = 0;
  const slow = backend.read(identity, 0, 32 * MiB, async (chunk) => {
    slowBytes += chunk.length;
    await release.promise;
  });
  const all = await readBytes(backend, identity, 0, 32 * MiB);
  assert.ok(slowBytes <= MiB);
  release.resolve();
  await slow;
  assert.equal(slowBytes, all.length);
});

void test("what is under way when the source is closed fails as closed, and nothing connects afterwards", async (t) => {
  if (!requireTool(t, "nbdkit")) return;
  const source = await startNbdkit(t, "--filter=delay", "memory", "8M", "rdelay=500ms");
  const backend = nbdBackend(source.uri());
  const { identity } = await backend.probe(1);
  const reading = failsWith("source-closed", readBytes(backend, identity, 0, MiB));
  await backend.close();
  await reading;
  await failsWith("source-closed", readBytes(backend, identity, 0, MiB));
});

void test("reads come through a source that breaks every connection after some bytes", async (t) => {
  if (!requireTool(t, "nbdkit")) return;
  const good = await robust(t);
  let connections = 0;
  const uri = await between(t, good.socket, (chunk, client, { bytes: before }) => {
    if (before === 0) connections++;
    if (before > 3 * MiB) client.destroy();
    return chunk;
  });
  const backend = openBackend(uri);
  const { identity } = await backend.probe(1);
  const bytes = await readBytes(backend, identity, 0, 8 * MiB);
  assert.ok(bytes.equals(content));
  assert.ok(connections >= 3, `${connections} connections for 8 MiB, of which each has given 3 at most`);
  await backend.close();
});

void test("one hiccup of any kind is no error: the read is tried again over another connection", async (t) => {
  if (!requireTool(t, "qemu-nbd")) return;
  const good = await robust(t);
  const silent = new WeakSet<net.Socket>();
  const hiccups: [string, (chunk: Buffer, client: net.Socket) => Buffer | void][] = [
    ["cut", (_, client) => void client.destroy()],
    ["rubbish", (chunk) => Buffer.alloc(chunk.length, 0xab)],
    ["a bit of it", (chunk, client) => void client.end(chunk.subarray(0, 100))],
    ["silence", (_, client) => void silent.add(client)],
  ];
  let next: (typeof hiccups)[0][1] | undefined;
  const uri = await between(t, good.socket, (chunk, client) => {
    if (silent.has(client)) return undefined;
    const hiccup = next;
    next = undefined;
    return hiccup === undefined ? chunk : (hiccup(chunk, client) ?? undefined);
  });
  const backend = openBackend(uri, { nbd: { idleTimeoutMs: 400, connectTimeoutMs: 5000 } });
  const { identity } = await backend.probe(1);
  for (const [name, hiccup] of hiccups) {
    next = hiccup;
    assert.ok((await readBytes(backend, identity, 0, content.length)).equals(content), name);
    assert.equal(next, undefined, `${name} was not met`);
  }
  await backend.close();
});

void test("a server that answers late, slowly and now and then with an error is read all the same", async (t) => {
  if (!requireTool(t, "nbdkit")) return;
  const directory = await temporaryDirectory(t);
  const [file, trigger] = ["disk", "trigger"].map((name) => join(directory, name));
  writeFileSync(file, content);
  const filters = ["--filter=error", "--filter=delay", "--filter=rate"];
  const weather = ["error-pread=EIO", "error-pread-rate=3%", `error-pread-file=${trigger}`, "rdelay=10ms", "rate=200M"];
  const server = await startNbdkit(t, "-r", ...filters, "file", file, ...weather);
  const backend = openBackend(server.uri());
  const { identity } = await backend.probe(1);
  writeFileSync(trigger, "");
  const reasons = new Set<string>();
  const bytes = await readBytes(backend, identity, 0, content.length, { onRetry: ({ code }) => reasons.add(code) });
  assert.ok(bytes.equals(content));
  for (const code of reasons) assert.equal(code, "source-io");
  await backend.close();
});
