import assert from "node:assert/strict";
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { getCACertificates, setDefaultCACertificates } from "node:tls";
import { temporaryDirectory } from "../daemon/support.ts";
import { makePki } from "../nbd/pki.ts";
import { freePort, NbdSource, startNbdkit, startQemuNbd } from "../support/nbd-source.ts";
import { requireTool } from "../support/tools.ts";
import { MiB, nbdBackend } from "./nbd-support.ts";
import { failsWith, pattern, readBytes } from "./support.ts";

const certificates = (directory: string): string => `&tls-certificates=${directory}`;

async function reads(uri: string, content: Buffer): Promise<void> {
  await using backend = nbdBackend(uri);
  const { identity } = await backend.probe(100);
  assert.ok((await readBytes(backend, identity, 0, content.length)).equals(content));
}

async function refused(uri: string, code = "source-tls"): Promise<void> {
  await using backend = nbdBackend(uri);
  await failsWith(code, backend.probe(1));
}

async function world(t: TestContext): Promise<{ directory: string; file: string; content: Buffer }> {
  const directory = await temporaryDirectory(t);
  const file = join(directory, "disk");
  const content = pattern(6 * MiB);
  writeFileSync(file, content);
  return { directory, file, content };
}

void test("X.509: nbdkit and qemu-nbd are verified by our own authority, and may demand a certificate of us", async (t) => {
  if (!requireTool(t, "nbdkit", "qemu-nbd", "certtool")) return;
  const { directory, file, content } = await world(t);
  const [ours, foreign] = [await makePki(directory, "ours"), await makePki(directory, "foreign")];
  const bare = join(directory, "bare");
  mkdirSync(bare);
  copyFileSync(join(ours, "ca-cert.pem"), join(bare, "ca-cert.pem"));

  const plain = await startNbdkit(t, "--tls=require", `--tls-certificates=${ours}`, "file", file);
  await reads(plain.uri("", "nbds+unix", certificates(bare)), content);
  await reads(plain.uri("", "nbds+unix", `${certificates(bare)}&tls-hostname=localhost`), content);
  await refused(plain.uri("", "nbds+unix", `${certificates(bare)}&tls-hostname=other.example`));
  await refused(plain.uri("", "nbds+unix", certificates(foreign)));
  await refused(plain.uri("", "nbds+unix"));
  await refused(plain.uri("", "nbds+unix", certificates(join(directory, "none"))));
  await reads(plain.uri("", "nbds+unix", "&tls-verify-peer=false"), content);
  await refused(plain.uri());

  const demanding = ["--tls=require", `--tls-certificates=${ours}`, "--tls-verify-peer"];
  const strict = await startNbdkit(t, ...demanding, "file", file);
  await reads(strict.uri("", "nbds+unix", certificates(ours)), content);
  await using without = nbdBackend(strict.uri("", "nbds+unix", certificates(bare)));
  await assert.rejects(without.probe(1));

  const object = `tls-creds-x509,id=tls0,endpoint=server,dir=${ours},verify-peer=yes`;
  const qemu = await startQemuNbd(t, "--object", object, "--tls-creds", "tls0", "-f", "raw", "-r", "-x", "disk", file);
  await reads(qemu.uri("disk", "nbds+unix", certificates(ours)), content);
  await refused(qemu.uri("disk"));
});

void test("X.509 over TCP: the certificate must be the host's", async (t) => {
  if (!requireTool(t, "nbdkit", "certtool")) return;
  const { directory, file, content } = await world(t);
  const ours = await makePki(directory, "ours");
  const port = await freePort();
  const args = [
    "-f",
    "-i",
    "127.0.0.1",
    "-p",
    String(port),
    "--tls=require",
    `--tls-certificates=${ours}`,
    "file",
    file,
  ];
  const source = new NbdSource("", "nbdkit", args, port);
  t.after(() => source.kill());
  await source.start();
  const parameter = `tls-certificates=${ours}`;
  await reads(`nbds://127.0.0.1:${port}/?${parameter}`, content);
  await reads(`nbds://localhost:${port}/?${parameter}`, content);
  await refused(`nbds://127.0.0.2:${port}/?${parameter}`, "source-unreachable");
  await refused(`nbds://127.0.0.1:${port}/?${parameter}&tls-hostname=other.example`);
});

void test("a pre-shared key opens nbdkit; another one, another user's or none does not, and no key is shown", async (t) => {
  if (!requireTool(t, "nbdkit")) return;
  const { directory, file, content } = await world(t);
  const key = "0123456789abcdef0123456789abcdef";
  const [keys, wrong, two, bad] = ["keys", "wrong", "two", "bad"].map((name) => join(directory, name));
  writeFileSync(keys, `alice:${key}\n`);
  writeFileSync(wrong, `alice:${key.replaceAll("0", "1")}\n`);
  writeFileSync(two, `alice:${key}\nbob:${key}\n`);
  writeFileSync(bad, `alice ${key}\n`);
  const source = await startNbdkit(t, "--tls=require", `--tls-psk=${keys}`, "file", file);
  const uri = (path: string, user = ""): string =>
    source.uri("", "nbds+unix", `&tls-psk-file=${path}`).replace("://", `://${user}`);
  await reads(uri(keys), content);
  await reads(uri(two, "alice@"), content);
  for (const refusedUri of [uri(wrong), uri(two), uri(two, "carol@"), uri(bad), uri(join(directory, "none"))]) {
    await using backend = nbdBackend(refusedUri);
    const failure = await failsWith("source-tls", backend.probe(1));
    assert.doesNotMatch(`${failure.message} ${failure.hint}`, new RegExp(key.slice(4, 16)));
  }
});

void test("a server that does not start TLS is refused, never read in the clear", async (t) => {
  if (!requireTool(t, "nbdkit", "certtool")) return;
  const { directory, file } = await world(t);
  const ours = await makePki(directory, "ours");
  const source = await startNbdkit(t, "--tls=off", "file", file);
  await using backend = nbdBackend(source.uri("", "nbds+unix", certificates(ours)));
  assert.match((await failsWith("source-tls", backend.probe(1))).message, /does not start TLS/);
});

void test("who has a key believes no certificate in its place, whoever signed it", async (t) => {
  if (!requireTool(t, "nbdkit", "certtool")) return;
  const { directory, file } = await world(t);
  const ours = await makePki(directory, "ours");
  const keys = join(directory, "keys");
  writeFileSync(keys, "alice:0123456789abcdef0123456789abcdef\n");
  const source = await startNbdkit(t, "--tls=require", `--tls-certificates=${ours}`, "file", file);
  const before = getCACertificates("default");
  setDefaultCACertificates([...before, readFileSync(join(ours, "ca-cert.pem"), "utf8")]);
  t.after(() => setDefaultCACertificates(before));
  await refused(source.uri("", "nbds+unix", `&tls-psk-file=${keys}`));
});
