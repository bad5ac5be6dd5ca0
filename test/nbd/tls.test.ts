import assert from "node:assert/strict";
import { copyFileSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test, { before, after, type TestContext } from "node:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import tls from "node:tls";
import { loadTls, type TlsMode, type TlsSettings } from "../../src/export/nbd/tls.ts";
import { missingTools, requireTool } from "../support/tools.ts";
import { makePki } from "./pki.ts";
import { goData, RawClient } from "./raw-client.ts";
import { MiB, run, serve, type Served, succeed, tempDir } from "./support.ts";

const ERR_POLICY = 0x80000002;
const ERR_INVALID = 0x80000003;
const ERR_TLS_REQD = 0x80000005;
const STARTTLS = 5;

let dir = "";

before(async () => {
  dir = mkdtempSync(join(tmpdir(), "ullage-tls-"));
  if (missingTools("certtool").length > 0) return;
  const ours = await makePki(dir, "ours");
  const foreign = await makePki(dir, "foreign");
  // What a client with the right authority but a foreign certificate of its own holds.
  const mixed = join(dir, "mixed");
  const bare = join(dir, "bare");
  for (const target of [mixed, bare]) {
    mkdirSync(target);
    copyFileSync(join(ours, "ca-cert.pem"), join(target, "ca-cert.pem"));
  }
  for (const leaf of ["client-cert.pem", "client-key.pem"]) copyFileSync(join(foreign, leaf), join(mixed, leaf));
});

after(() => rmSync(dir, { recursive: true, force: true }));

async function serveTls(t: TestContext, settings: TlsSettings, address = "127.0.0.1:0"): Promise<Served> {
  return serve(t, { tls: settings, address });
}

function x509(mode: TlsMode, verifyPeer = false): Promise<TlsSettings> {
  return loadTls({ mode, certsDir: join(dir, "ours"), verifyPeer });
}

/** An nbds URI for libnbd with the certificates of a directory. */
function secureUri(served: Served, certs: string): string {
  const { address } = served.listening;
  const parameter = `tls-certificates=${join(dir, certs)}`;
  if (address.kind === "unix") return `nbds+unix:///disk?socket=${address.path}&${parameter}&tls-hostname=localhost`;
  return `nbds://localhost:${address.port}/disk?${parameter}`;
}

for (const address of ["127.0.0.1:0", "unix"] as const) {
  void test(`X.509 over ${address}: nbdinfo verifies the server and sees the export`, async (t) => {
    if (!requireTool(t, "nbdinfo", "certtool")) return;
    const target = address === "unix" ? `unix:${join(tempDir(t), "tls.sock")}` : address;
    const served = await serveTls(t, await x509("require"), target);
    const uri =
      address === "unix" ? secureUri(served, "bare").replace("&tls-hostname=localhost", "") : secureUri(served, "bare");
    const info = JSON.parse(await succeed("nbdinfo", ["--json", uri])) as Record<string, unknown>;
    assert.equal(info["TLS"], true);
    assert.equal(info["structured"], true);
  });
}

void test("data goes both ways under TLS, at every size", async (t) => {
  if (!requireTool(t, "nbdcopy", "certtool")) return;
  const served = await serveTls(t, await x509("require"));
  for (const slow of [false, true]) {
    served.device.slow = slow;
    const content = Buffer.alloc(16 * MiB);
    for (let i = 0; i < content.length; i += 4) content.writeUInt32LE((i * 2654435761) >>> 0, i);
    const file = join(tempDir(t), "content");
    writeFileSync(file, content);
    await succeed("nbdcopy", ["--request-size=8388608", file, secureUri(served, "bare")]);
    assert.ok(served.device.data.equals(content));
    await succeed("nbdcopy", ["--request-size=8388608", secureUri(served, "bare"), `${file}.out`]);
    await succeed("cmp", [file, `${file}.out`]);
  }
});

void test("qemu-img works under TLS", async (t) => {
  if (!requireTool(t, "qemu-img", "certtool")) return;
  const served = await serveTls(t, await x509("require", true));
  const { address } = served.listening;
  assert.ok(address.kind === "tcp");
  const printed = await succeed("qemu-img", [
    "info",
    "--output=json",
    "--object",
    `tls-creds-x509,id=tls0,endpoint=client,dir=${join(dir, "ours")}`,
    "--image-opts",
    `driver=nbd,host=localhost,port=${address.port},export=disk,tls-creds=tls0`,
  ]);
  assert.equal((JSON.parse(printed) as Record<string, unknown>)["virtual-size"], 16 * MiB);
});

void test("a server that verifies its peers lets in its own clients only", async (t) => {
  if (!requireTool(t, "nbdinfo", "certtool")) return;
  const served = await serveTls(t, await x509("require", true));
  assert.equal((await run("nbdinfo", ["--size", secureUri(served, "ours")])).code, 0);
  const foreign = await run("nbdinfo", ["--size", secureUri(served, "mixed")]);
  assert.notEqual(foreign.code, 0, "a certificate of a foreign authority");
  const none = await run("nbdinfo", ["--size", secureUri(served, "bare")]);
  assert.notEqual(none.code, 0, "no certificate at all");
  // Only the good client got as far as the device.
  assert.equal(served.device.stays.length, 1);
});

void test("a revoked client certificate is refused", async (t) => {
  if (!requireTool(t, "nbdinfo", "certtool")) return;
  const pki = await makePki(dir, "revoking");
  const config = join(pki, "crl.info");
  writeFileSync(config, "crl_next_update = 30\ncrl_number = 1\n");
  await succeed("certtool", [
    "--generate-crl",
    "--load-ca-privkey",
    join(pki, "ca-key.pem"),
    "--load-ca-certificate",
    join(pki, "ca-cert.pem"),
    "--load-certificate",
    join(pki, "client-cert.pem"),
    "--template",
    config,
    "--outfile",
    join(pki, "ca-crl.pem"),
  ]);
  const served = await serveTls(t, await loadTls({ mode: "require", certsDir: pki, verifyPeer: true }));
  assert.notEqual((await run("nbdinfo", ["--size", secureUri(served, "revoking")])).code, 0);
});

void test("a client that expects another server's certificate leaves, and the server goes on", async (t) => {
  if (!requireTool(t, "nbdinfo", "certtool")) return;
  const served = await serveTls(t, await x509("require"));
  assert.notEqual((await run("nbdinfo", ["--size", secureUri(served, "foreign")])).code, 0);
  assert.equal((await run("nbdinfo", ["--size", secureUri(served, "bare")])).code, 0);
});

void test("PSK: the right key works, a wrong key and an unknown identity do not", async (t) => {
  if (!requireTool(t, "nbdinfo", "psktool")) return;
  const keys = join(tempDir(t), "keys");
  const others = join(tempDir(t), "others");
  await succeed("psktool", ["-u", "alice", "-p", keys]);
  await succeed("psktool", ["-u", "bob", "-p", keys]);
  await succeed("psktool", ["-u", "alice", "-p", others]);
  await succeed("psktool", ["-u", "mallory", "-p", others]);
  const served = await serveTls(t, await loadTls({ mode: "require", pskFile: keys }));
  const { address } = served.listening;
  assert.ok(address.kind === "tcp");
  const uri = (user: string, file: string): string =>
    `nbds://${user}@localhost:${address.port}/disk?tls-psk-file=${file}`;
  assert.equal(await succeed("nbdinfo", ["--size", uri("alice", keys)]), `${16 * MiB}\n`);
  assert.equal(await succeed("nbdinfo", ["--size", uri("bob", keys)]), `${16 * MiB}\n`);
  assert.notEqual((await run("nbdinfo", ["--size", uri("alice", others)])).code, 0, "wrong key");
  assert.notEqual((await run("nbdinfo", ["--size", uri("mallory", others)])).code, 0, "unknown identity");
  assert.equal(served.device.stays.length, 2);
});

void test("PSK works with a client that speaks TLS 1.2 at most", async (t) => {
  if (!requireTool(t, "qemu-img", "psktool")) return;
  const keyDir = tempDir(t);
  await succeed("psktool", ["-u", "qemu", "-p", join(keyDir, "keys.psk")]);
  const served = await serveTls(t, await loadTls({ mode: "require", pskFile: join(keyDir, "keys.psk") }));
  const { address } = served.listening;
  assert.ok(address.kind === "tcp");
  for (const priority of ["NORMAL", "NORMAL:-VERS-TLS1.3"]) {
    await succeed("qemu-img", [
      "info",
      "--object",
      `tls-creds-psk,id=tls0,endpoint=client,dir=${keyDir},username=qemu,priority=${priority}`,
      "--image-opts",
      `driver=nbd,host=127.0.0.1,port=${address.port},export=disk,tls-creds=tls0`,
    ]);
  }
});

void test("when TLS is required, nothing but STARTTLS and ABORT is answered in the clear", async (t) => {
  if (!requireTool(t, "certtool", "nbdinfo")) return;
  const served = await serveTls(t, await x509("require"));
  const { address } = served.listening;
  assert.ok(address.kind === "tcp");
  const client = await RawClient.connect(address.port);
  await client.greet();
  for (const [option, data] of [
    [3, Buffer.alloc(0)],
    [6, goData("disk")],
    [7, goData("disk")],
    [8, Buffer.alloc(0)],
    [9, Buffer.alloc(0)],
    [11, Buffer.alloc(0)],
    [1234, Buffer.alloc(0)],
  ] as const) {
    client.option(option, data);
    assert.equal((await client.optionReply()).type, ERR_TLS_REQD, `option ${option}`);
  }
  client.option(STARTTLS, Buffer.from("x"));
  assert.equal((await client.optionReply()).type, ERR_INVALID);
  await client.expectAck(2);
  const other = await RawClient.connect(address.port);
  await other.greet();
  other.option(1, Buffer.from("disk"));
  await other.end();
  assert.equal(served.device.counts.attach, 0);
  const plain = await run("nbdinfo", [`nbd://localhost:${address.port}/disk`]);
  assert.notEqual(plain.code, 0);
});

void test("when TLS is offered, clients may do without; when it is off, STARTTLS is refused by policy", async (t) => {
  if (!requireTool(t, "certtool", "nbdinfo")) return;
  const served = await serveTls(t, await x509("on"));
  const { address } = served.listening;
  assert.ok(address.kind === "tcp");
  assert.equal((await run("nbdinfo", ["--size", `nbd://localhost:${address.port}/disk`])).code, 0);
  assert.equal((await run("nbdinfo", ["--size", secureUri(served, "bare")])).code, 0);
  const { path } = await serve(t);
  const client = await RawClient.connect(path);
  await client.greet();
  client.option(STARTTLS);
  assert.equal((await client.optionReply()).type, ERR_POLICY);
  await client.expectAck(8);
});

void test("bytes sent in the clear behind STARTTLS end the connection: no command can be injected", async (t) => {
  if (!requireTool(t, "certtool")) return;
  const served = await serveTls(t, await x509("on"));
  const { address } = served.listening;
  assert.ok(address.kind === "tcp");
  const client = await RawClient.connect(address.port);
  await client.greet();
  const injected = Buffer.concat([optionBytes(STARTTLS), optionBytes(8)]);
  client.write(injected);
  await client.end();
  assert.match(served.log.join("\n"), /bytes behind STARTTLS/);
});

void test("STARTTLS forgets what was negotiated before, and can't be repeated", async (t) => {
  if (!requireTool(t, "certtool")) return;
  const served = await serveTls(t, await x509("on"));
  const { address } = served.listening;
  assert.ok(address.kind === "tcp");
  const client = await RawClient.connect(address.port);
  await client.greet();
  await client.expectAck(8);
  await client.expectAck(STARTTLS);
  client.socket.removeAllListeners("data");
  const socket = tls.connect({ socket: client.socket, rejectUnauthorized: false });
  const bytes: Buffer[] = [];
  socket.on("data", (chunk: Buffer) => bytes.push(chunk));
  await new Promise((resolve) => socket.once("secureConnect", resolve));
  const read = async (length: number): Promise<Buffer> => {
    while (Buffer.concat(bytes).length < length) await new Promise((resolve) => socket.once("data", resolve));
    const all = Buffer.concat(bytes.splice(0));
    if (all.length > length) bytes.push(all.subarray(length));
    return all.subarray(0, length);
  };
  const refusal = async (): Promise<number> => {
    const header = await read(20);
    await read(header.readUInt32BE(16));
    return header.readUInt32BE(12);
  };
  // Metadata contexts need structured replies, which were agreed on in the clear and must be forgotten.
  socket.write(optionBytes(10, Buffer.alloc(8)));
  assert.equal(await refusal(), ERR_INVALID);
  socket.write(optionBytes(STARTTLS));
  assert.equal(await refusal(), ERR_INVALID);
  socket.write(optionBytes(8));
  assert.equal(await refusal(), 1);
  socket.destroy();
});

void test("a TLS handshake that stalls is ended", async (t) => {
  if (!requireTool(t, "certtool")) return;
  const settings = await x509("on");
  const served = await serve(t, { tls: settings, limits: { handshakeTimeoutMs: 1500 } });
  const client = await RawClient.connect(served.path);
  await client.greet();
  await client.expectAck(STARTTLS);
  await client.end();
});

void test("loadTls says what is missing", async (t) => {
  if (!requireTool(t, "certtool")) return;
  const empty = tempDir(t);
  const bad = join(empty, "bad.psk");
  writeFileSync(bad, "alice:nothex\n");
  await assert.rejects(loadTls({ mode: "on" }), { code: "tls-config", message: /there is no key/ });
  await assert.rejects(loadTls({ mode: "on", certsDir: empty }), { code: "tls-config", message: /ca-cert\.pem/ });
  await assert.rejects(loadTls({ mode: "on", certsDir: empty, pskFile: bad }), { code: "tls-config" });
  await assert.rejects(loadTls({ mode: "on", pskFile: bad }), (error: Error) => {
    assert.match(error.message, /line 1/);
    assert.doesNotMatch(error.message, /nothex/);
    return true;
  });
  await assert.rejects(loadTls({ mode: "on", pskFile: bad, verifyPeer: true }), { code: "tls-config" });
});

function optionBytes(number: number, data: Buffer = Buffer.alloc(0)): Buffer {
  const header = Buffer.alloc(16);
  header.write("IHAVEOPT", "latin1");
  header.writeUInt32BE(number, 8);
  header.writeUInt32BE(data.length, 12);
  return Buffer.concat([header, data]);
}
