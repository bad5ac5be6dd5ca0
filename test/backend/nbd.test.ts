import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { randomInt } from "node:crypto";
import { readFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { parseNbdSource } from "../../src/backend/nbd/nbd-address.ts";
import { sourcePolicy } from "../../src/backend/source-guard.ts";
import { temporaryDirectory } from "../daemon/support.ts";
import { type NbdSource, startNbdkit, startNbdServer, startQemuNbd } from "../support/nbd-source.ts";
import { requireTool } from "../support/tools.ts";
import { between, MiB, nbdBackend, sha256, sparseFile } from "./nbd-support.ts";
import { until } from "../nbd/support.ts";
import { failsWith, openBackend, pattern, readBytes } from "./support.ts";

/** Random ranges, and all of it, through the source, beside what qemu-img makes of it. */
async function demandExact(t: TestContext, uri: string, expected: Buffer): Promise<void> {
  await using backend = nbdBackend(uri);
  const { identity, head, ranges } = await backend.probe(4096);
  assert.deepEqual([identity.size, ranges, identity.strong], [expected.length, true, false]);
  assert.ok(head.equals(expected.subarray(0, 4096)));
  const wanted = Array.from({ length: 60 }, () => {
    const offset = randomInt(0, expected.length);
    return { offset, length: randomInt(0, Math.min(3 * MiB, expected.length - offset) + 1) };
  });
  await Promise.all(
    wanted.map(async ({ offset, length }, index) => {
      const bytes = await readBytes(backend, identity, offset, length, { background: index % 2 === 0 });
      assert.ok(bytes.equals(expected.subarray(offset, offset + length)), `${length} at ${offset}`);
    }),
  );
  const all = await readBytes(backend, identity, 0, expected.length);
  assert.equal(sha256(all), sha256(expected));
  t.diagnostic(`${backend.connections} connections`);
}

/** What `qemu-img convert` sees of a server. */
function converted(uri: string, directory: string): Promise<Buffer> {
  const file = join(directory, "converted");
  execFileSync("qemu-img", ["convert", "-f", "raw", "-O", "raw", uri, file], { timeout: 60_000 });
  return Promise.resolve(readFileSync(file));
}

const data = [0, 3 * MiB + 4096, 17 * MiB, 30 * MiB];

for (const [name, ...args] of [
  ["nbdkit"],
  ["nbdkit that is read-only", "-r"],
  ["nbdkit without structured replies", "--no-sr"],
  [
    "nbdkit that takes only blocks of 4096 bytes and at most 64 KiB",
    "--filter=blocksize-policy",
    "blocksize-error-policy=error",
    "blocksize-minimum=4096",
    "blocksize-preferred=65536",
    "blocksize-maximum=65536",
  ],
]) {
  void test(`what ${name} serves is what qemu-img convert makes of it, byte by byte`, async (t) => {
    if (!requireTool(t, "nbdkit", "qemu-img")) return;
    const directory = await temporaryDirectory(t);
    const file = join(directory, "disk");
    sparseFile(file, 32 * MiB, 300_000, data);
    const flags = args.filter((arg) => arg.startsWith("-"));
    const values = args.filter((arg) => !arg.startsWith("-"));
    const source = await startNbdkit(t, ...flags, "file", file, ...values);
    await demandExact(t, source.uri(), await converted(source.uri(), directory));
  });
}

void test("a qcow2 with holes behind qemu-nbd, and a file behind nbd-server, are read exactly", async (t) => {
  if (!requireTool(t, "qemu-img", "qemu-nbd", "nbd-server")) return;
  const directory = await temporaryDirectory(t);
  const [raw, qcow2] = ["raw", "qcow2"].map((name) => join(directory, name));
  sparseFile(raw, 32 * MiB, 300_000, data);
  execFileSync("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", raw, qcow2]);
  const qemu = await startQemuNbd(t, "-f", "qcow2", "-r", "-x", "some disk", qcow2);
  await demandExact(t, qemu.uri("some%20disk"), readFileSync(raw));
  await demandExact(t, (await startNbdServer(t, { disk: raw }))("disk"), readFileSync(raw));
});

void test("an export whose size is a multiple of nothing is read to its last byte", async (t) => {
  if (!requireTool(t, "nbdkit")) return;
  const file = join(await temporaryDirectory(t), "disk");
  const content = pattern(5_000_003);
  writeFileSync(file, content);
  for (const flags of [[], ["--no-sr"]]) {
    const source = await startNbdkit(t, ...flags, "file", file);
    await demandExact(t, source.uri(), content);
  }
});

void test("holes are not fetched: the background asks for them, and reads skip them from then on", async (t) => {
  if (!requireTool(t, "nbdkit", "qemu-nbd", "qemu-img")) return;
  const directory = await temporaryDirectory(t);
  const [raw, qcow2] = ["raw", "qcow2"].map((name) => join(directory, name));
  const size = 3 * 1024 * MiB;
  const at = [0, 700 * MiB, 2500 * MiB];
  sparseFile(raw, size, MiB, at);
  execFileSync("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", raw, qcow2]);
  const sources: NbdSource[] = [await startNbdkit(t, "file", raw), await startQemuNbd(t, "-f", "qcow2", "-r", qcow2)];
  for (const source of sources) {
    await using backend = nbdBackend(source.uri());
    const { identity } = await backend.probe(4096);
    assert.equal(await backend.zeroRun(identity, MiB, size - MiB), 0); // the foreground does not wait
    const run = await backend.zeroRun(identity, 2 * MiB, size - 2 * MiB, { background: true });
    assert.equal(run, 698 * MiB);
    assert.equal(
      await backend.zeroRun(identity, 2501 * MiB, size - 2501 * MiB, { background: true }),
      499 * MiB + 72 * MiB,
    );
    assert.equal(await backend.zeroRun(identity, 700 * MiB, 100, { background: true }), 0);
    assert.equal(await backend.zeroRun(identity, 701 * MiB, size - 701 * MiB, { background: true }), 1799 * MiB);
    const before = backend.bytesRead;
    let bytes = 0;
    let other = 0;
    await backend.stream(identity, (chunk) => {
      if (!Buffer.alloc(chunk.length).equals(chunk)) other += chunk.length;
      bytes += chunk.length;
    });
    assert.equal(bytes, size);
    assert.equal(other, 3 * MiB);
    assert.equal(backend.bytesRead - before, 3 * MiB);
  }
});

void test("a server without base:allocation is read whole, zeros and all", async (t) => {
  if (!requireTool(t, "nbdkit")) return;
  const source = await startNbdkit(t, "--no-sr", "memory", "8M");
  await using backend = nbdBackend(source.uri());
  const { identity } = await backend.probe(4096);
  assert.equal(await backend.zeroRun(identity, 0, identity.size, { background: true }), 0);
  const before = backend.bytesRead;
  assert.ok((await readBytes(backend, identity, 0, identity.size)).equals(Buffer.alloc(8 * MiB)));
  assert.equal(backend.bytesRead - before, 8 * MiB);
});

void test("several connections are opened only when the server allows them, and as many as that are used", async (t) => {
  if (!requireTool(t, "nbdkit")) return;
  for (const [mode, expected] of [
    ["multi-conn-mode=disable", 1],
    ["multi-conn-mode=auto", 4],
  ] as const) {
    const source = await startNbdkit(t, "--filter=multi-conn", "--filter=delay", "memory", "16M", mode, "rdelay=20ms");
    await using backend = nbdBackend(source.uri());
    const { identity } = await backend.probe(4096);
    for (let round = 0; round < 4; round++) await readBytes(backend, identity, 0, 8 * MiB);
    assert.equal(backend.connections, expected);
  }
});

void test("one of several connections is the foreground's alone; those that nobody uses are closed, and made again", async (t) => {
  if (!requireTool(t, "nbdkit")) return;
  const source = await startNbdkit(t, "-r", "memory", "32M");
  const counted: { bytes: number }[] = [];
  const uri = await between(t, source.socket, (chunk, _, connection) => {
    counted.push(...(counted.includes(connection) ? [] : [connection]));
    return chunk;
  });
  await using backend = nbdBackend(uri, { keepMs: 2000 });
  const { identity } = await backend.probe(4096);
  const all = (background: boolean): Promise<Buffer> => readBytes(backend, identity, 0, identity.size, { background });
  for (let round = 0; backend.connections < 4 && round < 10; round++) await all(false);
  assert.equal(counted.length, 4);
  for (const each of counted) each.bytes = 0;
  await all(true);
  assert.equal(counted.filter(({ bytes }) => bytes === 0).length, 1);
  await until(() => backend.connections === 0, "idle connections are closed");
  assert.equal((await all(true)).length, identity.size);
});

void test("a server that is killed and comes back in the middle of reads is a pause", async (t) => {
  if (!requireTool(t, "nbdkit")) return;
  const file = join(await temporaryDirectory(t), "disk");
  const content = pattern(16 * MiB);
  writeFileSync(file, content);
  const source = await startNbdkit(t, "-r", "--filter=delay", "file", file, "rdelay=20ms");
  const backend = openBackend(source.uri());
  const { identity } = await backend.probe(4096);
  for (let round = 0; round < 3; round++) {
    let seen = 0;
    const many = Array.from({ length: 4 }, async () => {
      const chunks: Buffer[] = [];
      await backend.read(identity, 0, content.length, (chunk) => {
        chunks.push(Buffer.from(chunk));
        seen += chunk.length;
      });
      assert.ok(Buffer.concat(chunks).equals(content));
    });
    await until(() => seen >= 2 * MiB, "bytes arrive");
    await source.kill();
    await source.start();
    await Promise.all(many);
  }
  await backend.close();
});

void test("another content or size behind the same address after a restart is a changed source; the old one again is fine", async (t) => {
  if (!requireTool(t, "nbdkit")) return;
  const file = join(await temporaryDirectory(t), "disk");
  const content = pattern(4 * MiB);
  writeFileSync(file, content);
  const source = await startNbdkit(t, "file", file);
  await using backend = nbdBackend(source.uri());
  const { identity } = await backend.probe(4096);
  const restart = async (change: () => void): Promise<void> => {
    await source.kill();
    change();
    await source.start();
    await readBytes(backend, identity, 0, 1).catch(() => undefined); // meets the broken connections
  };
  await restart(() => writeFileSync(file, pattern(4 * MiB, 2)));
  assert.match((await failsWith("source-changed", readBytes(backend, identity, 0, 100))).message, /sample/);
  await restart(() => {
    writeFileSync(file, content);
    truncateSync(file, 5 * MiB);
  });
  assert.match((await failsWith("source-changed", readBytes(backend, identity, 0, 100))).message, /had 4194304 bytes/);
  await restart(() => writeFileSync(file, content));
  assert.ok((await readBytes(backend, identity, 0, content.length)).equals(content));
  // A backend that is opened anew, as after a restart of ours, compares with what was pinned as well.
  await using reopened = nbdBackend(source.uri());
  assert.ok((await readBytes(reopened, identity, 5, 100)).equals(content.subarray(5, 105)));
  await failsWith("source-changed", readBytes(reopened, { ...identity, version: "sample:sha256:00" }, 0, 100));
});

void test("errors of the server are told as what they are, and a read that meets some comes through by being tried again", async (t) => {
  if (!requireTool(t, "nbdkit", "qemu-nbd")) return;
  const directory = await temporaryDirectory(t);
  const [trigger, file] = ["trigger", "disk"].map((name) => join(directory, name));
  const content = pattern(8 * MiB);
  writeFileSync(file, content);
  for (const [error, code, transient] of [
    ["EIO", "source-io", true],
    ["EPERM", "source-denied", false],
    ["EINVAL", "source-bad-answer", true],
    ["ESHUTDOWN", "source-unreachable", true],
  ] as const) {
    const options = [`error-pread=${error}`, "error-pread-rate=100%", `error-pread-file=${trigger}-${error}`];
    const source = await startNbdkit(t, "--filter=error", "file", file, ...options);
    await using backend = nbdBackend(source.uri());
    const { identity } = await backend.probe(4096);
    writeFileSync(`${trigger}-${error}`, "");
    const failure = await failsWith(code, readBytes(backend, identity, 0, 1000));
    assert.equal(failure.transient, transient);
    assert.match(failure.message, new RegExp(error));
  }
  const flaky = await startNbdkit(
    t,
    "--filter=error",
    "file",
    file,
    "error-pread=EIO",
    "error-pread-rate=5%",
    `error-pread-file=${trigger}`,
  );
  const backend = openBackend(flaky.uri());
  const { identity } = await backend.probe(4096);
  writeFileSync(trigger, "");
  assert.ok((await readBytes(backend, identity, 0, content.length)).equals(content));
  await backend.close();

  const named = await startQemuNbd(t, "-f", "raw", "-r", "-x", "right", file);
  await using wrong = nbdBackend(named.uri("wrong"));
  await failsWith("source-not-found", wrong.probe(1));
});

void test("NBD URIs have one canonical form, and what is none is an error", () => {
  const canonical = (source: string): string => parseNbdSource(source).url;
  assert.equal(canonical("NBD://Example.ORG:10809/a%20b"), "nbd://example.org/a%20b");
  assert.equal(canonical("nbd://example.org"), "nbd://example.org/");
  assert.equal(canonical("nbd://[::1]:99/x/y"), "nbd://[::1]:99/x/y");
  assert.equal(canonical("nbd://0x7f.1/"), "nbd://127.0.0.1/");
  assert.equal(canonical("nbd+unix:///?socket=/run/a%20b"), "nbd+unix:///?socket=/run/a%20b");
  assert.equal(
    canonical("nbds://me@h/e?tls-verify-peer=false&tls-psk-file=/k"),
    "nbds://me@h/e?tls-psk-file=/k&tls-verify-peer=false",
  );
  assert.equal(parseNbdSource("nbd://h//absolute").exportName, "/absolute");
  for (const bad of [
    "nbd:///export",
    "nbd+unix:///export",
    "nbd+unix:///export?socket=relative",
    "nbd+unix://host/export?socket=/a",
    `nbd+unix:///?socket=/${"a".repeat(108)}`,
    "nbd://me:secret@h/",
    "nbd://me@h/",
    "nbd://h/?tls-certificates=/a",
    "nbds://h/?tls-certificates=/a&tls-psk-file=/b",
    "nbds://h/?tls-certificates=a",
    "nbds://h/?tls-verify-peer=maybe",
    "nbd://h/?socket=/a",
    "nbd://h/a#b",
    "nbd://h/%zz",
    "nbd://h/\0",
  ]) {
    assert.throws(() => parseNbdSource(bad), { code: "source-invalid" }, bad);
    try {
      parseNbdSource(bad);
    } catch (error) {
      assert.doesNotMatch((error as Error).message, /secret/);
    }
  }
});

void test("who is guarded reaches no socket, no private or loopback server and no key file by way of NBD", async (t) => {
  if (!requireTool(t, "nbdkit")) return;
  const source = await startNbdkit(t, "memory", "1M");
  const policy = sourcePolicy(["public"], () => Promise.resolve([{ address: "127.0.0.1", family: 4 }]));
  for (const uri of [
    source.uri(),
    "nbd://127.0.0.1/",
    "nbd://0x7f000001/",
    "nbd://2130706433/",
    "nbd://[::ffff:127.0.0.1]/",
    "nbd://10.1.2.3/",
    "nbd://169.254.169.254/",
    "nbd://innocent.example/",
    "nbds://innocent.example/?tls-psk-file=/etc/passwd",
    "nbds://innocent.example/?tls-certificates=/etc",
  ]) {
    await using backend = nbdBackend(uri, { policy });
    await failsWith("source-forbidden", backend.probe(1));
  }
  await using free = nbdBackend(source.uri(), { policy: sourcePolicy(["any"]) });
  assert.equal((await free.probe(1)).identity.size, MiB);
});
