import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { existsSync, statSync } from "node:fs";
import { chmod, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { test, type TestContext } from "node:test";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { launch, type Running, run } from "../cli/support.ts";
import { temporaryDirectory } from "../blob/support.ts";
import { type Announced, client, lazyBlob, openRemote, until, world } from "./support.ts";
import { V1Client } from "./v1-client.ts";

const KiB = 1024;
const MiB = 1024 * KiB;

const start = (t: TestContext, dataDir: string): Promise<Running<Announced>> =>
  launch<Announced>(t, ["blobd", "--data", dataDir]);

void test("mistakes 6 to 9: kill -9 of the manager under load is invisible to its client's readers", async (t) => {
  const { content, dataDir, id } = await lazyBlob(t, 16 * MiB, 20);
  let manager = await start(t, dataDir);
  const blob = await openRemote(client(t, manager.announced.socket).client, id);
  let reads = 0;
  const stop = new AbortController();
  const reader = async (): Promise<void> => {
    const buffer = new IoBuffer(4096);
    while (!stop.signal.aborted) {
      const offset = 4096 * Math.floor(Math.random() * (content.length / 4096));
      await blob.fetch(offset, 4096);
      if (!blob.isReady(offset, 4096)) continue; // taken back by the new manager: asked for again, as a volume does
      assert.equal(await blob.file.read(buffer, 0, 4096, offset), 4096);
      assert.ok(buffer.bytes.equals(content.subarray(offset, offset + 4096)), `at ${offset}`);
      reads++;
    }
  };
  const readers = Promise.all(Array.from({ length: 8 }, reader));
  readers.catch(() => stop.abort());
  for (let kill = 0; kill < 4; kill++) {
    const before = reads;
    await until("some reads", () => reads > before + 20 || stop.signal.aborted);
    await manager.stop("SIGKILL");
    manager = await start(t, dataDir);
  }
  const before = reads;
  await until("reads after the last kill", () => reads > before + 20 || stop.signal.aborted);
  stop.abort();
  await readers;
  await blob.close();
});

void test("mistake 8: after a restart the new descriptor is read, not the old inode", async (t) => {
  const { content, dataDir, id } = await lazyBlob(t, MiB, 0);
  let manager = await start(t, dataDir);
  const blob = await openRemote(client(t, manager.announced.socket).client, id);
  await blob.fetch(0, 4096);
  await manager.stop("SIGKILL");
  // The cache file is another one now, as after an eviction: what was ready is not any more.
  const data = join(dataDir, "blobs", id, "data");
  const inode = statSync(data).ino;
  await rm(data);
  manager = await start(t, dataDir);
  await blob.fetch(512 * KiB, 4096);
  assert.notEqual(statSync(data).ino, inode);
  const buffer = new IoBuffer(4096);
  assert.equal(await blob.file.read(buffer, 0, 4096, 512 * KiB), 4096);
  assert.ok(buffer.bytes.equals(content.subarray(512 * KiB, 512 * KiB + 4096)));
  await until("the old readiness is gone", () => !blob.isReady(0, 4096));
  await blob.close();
});

void test("a request waits for a manager that is away, but not for ever", async (t) => {
  const { dataDir, id } = await lazyBlob(t, MiB, 0);
  const manager = await start(t, dataDir);
  const blob = await openRemote(client(t, manager.announced.socket, 1500).client, id);
  await blob.fetch(0, 4096);
  await manager.stop("SIGKILL");
  assert.ok(blob.isReady(0, 4096), "what is here stays readable");
  await assert.rejects(blob.fetch(512 * KiB, 4096), /can't be reached/);
  await start(t, dataDir);
  await blob.fetch(512 * KiB, 4096);
});

void test("mistake 12: the second manager on a cache, or on a socket, says who is there, and takes nothing", async (t) => {
  const { dataDir, id } = await lazyBlob(t, MiB, 0);
  const first = await start(t, dataDir);
  const second = await run(["blobd", "--data", dataDir]);
  assert.equal(second.code, 1);
  assert.match(second.stderr, /in use by another process/);
  const elsewhere = temporaryDirectory(t);
  const third = await run(["blobd", "--data", elsewhere, "--socket", first.announced.socket]);
  assert.equal(third.code, 1);
  assert.match(third.stderr, /it is in use/);
  const blob = await openRemote(client(t, first.announced.socket).client, id);
  await blob.fetch(0, 4096);
});

void test("mistake 13: a user that is not allowed is turned away, though the socket would let him in", async (t) => {
  const { path, log, blobId } = await world(t, MiB);
  await chmod(path, 0o666);
  await chmod(dirname(path), 0o755);
  const script = `import socket; s = socket.socket(socket.AF_UNIX); s.connect(${JSON.stringify(path)}); s.settimeout(20); print(len(s.recv(20)))`;
  const child = spawn("python3", ["-c", script], { uid: 65534, gid: 65534, stdio: ["ignore", "pipe", "inherit"] });
  let out = "";
  child.stdout.on("data", (chunk: Buffer) => (out += chunk.toString()));
  await new Promise((resolve) => child.on("close", resolve));
  assert.equal(out.trim(), "0");
  assert.ok(log.some((line) => /user 65534 .* may not connect/.test(line)));
  const mine = new V1Client(t);
  await mine.do({ do: "connect", path });
  assert.equal((await mine.do({ do: "get", tag: 1, generation: 1, id: blobId })).result, 0);
});

void test("range maps of an earlier life are gone when a manager begins", async (t) => {
  const { dataDir, id } = await lazyBlob(t, MiB, 0);
  const first = await start(t, dataDir);
  const old = new V1Client(t);
  await old.do({ do: "connect", path: first.announced.socket });
  await old.do({ do: "get", tag: 1, generation: 1, id });
  const file = join(dataDir, "blobs", `${id}.range_map`);
  assert.ok(existsSync(file));
  await first.stop("SIGKILL");
  assert.ok(existsSync(file));
  await start(t, dataDir);
  assert.ok(!existsSync(file));
});
