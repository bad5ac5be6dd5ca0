import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { createPrivateKey, randomUUID, sign } from "node:crypto";
import { createServer } from "node:http";
import { readFile, writeFile } from "node:fs/promises";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";
import { collect, failsWith, openBackend, pattern, readBytes } from "../backend/support.ts";
import { launch } from "../cli/support.ts";
import { atEnd, temporaryDirectory } from "../daemon/support.ts";
import { requireTool } from "../support/tools.ts";
import { digestOf, push, startRegistry } from "./registry.ts";

const execute = promisify(execFile);
const content = pattern(8 * 2 ** 20 + 512);
const once = { attempts: 1, baseMs: 1, capMs: 1, timeLimitMs: 1000 };

const open = (host: string, env: Record<string, string>, fragment = ""): ReturnType<typeof openBackend> =>
  openBackend(`oci://${host}/team/disk:v1${fragment}`, { env, retry: { probe: once } });

void test(
  "oci: docker-registry with what skopeo pushed: ranges, the whole, one blob of several, a restart",
  { timeout: 120_000 },
  async (t) => {
    if (!requireTool(t, "docker-registry", "skopeo", "nbdcopy")) return;
    const directory = await temporaryDirectory(t);
    const registry = await startRegistry(t, directory, "");
    await push(directory, registry.host, [{ bytes: content, title: "disk.raw" }]);
    const env = { DOCKER_CONFIG: join(directory, "none") };
    const backend = open(registry.host, env);
    const { identity, mediaType, ranges } = await backend.probe(1);
    assert.deepEqual([identity.version, identity.size, ranges], [`digest:${digestOf(content)}`, content.length, true]);
    assert.equal(mediaType, "application/vnd.example.disk");
    assert.deepEqual(await readBytes(backend, identity, 1_000_001, 3_000_000), content.subarray(1_000_001, 4_000_001));
    const whole = collect();
    await backend.stream(identity, whole.sink);
    assert.ok(whole.bytes().equals(content));
    await registry.restart();
    assert.deepEqual(await readBytes(backend, identity, 5, 1000), content.subarray(5, 1005));
    await backend.close();
    await failsWith(
      "source-not-found",
      openBackend(`oci://${registry.host}/team/disk:none`, { env, retry: { probe: once } }).probe(1),
    );

    const disk = await launch<{ uri: string }>(
      t,
      ["run", `oci://${registry.host}/team/disk:v1`, "--nbd", "127.0.0.1:0"],
      { env },
    );
    const out = join(directory, "out.raw");
    await execute("nbdcopy", [disk.announced.uri, out], { timeout: 60_000 });
    assert.ok((await readFile(out)).equals(content));
    assert.equal((await disk.stop()).code, 0);

    await push(directory, registry.host, [
      { bytes: content, title: "disk.raw" },
      { bytes: Buffer.from("notes"), title: "notes.txt" },
    ]);
    await failsWith("source-ambiguous", open(registry.host, env).probe(1));
    assert.equal((await open(registry.host, env, "#notes.txt").probe(10)).head.toString(), "notes");
  },
);

void test("oci: docker-registry with htpasswd", { timeout: 120_000 }, async (t) => {
  if (!requireTool(t, "docker-registry", "skopeo", "htpasswd")) return;
  const directory = await temporaryDirectory(t);
  const { stdout } = await execute("htpasswd", ["-Bbn", "me", "pass:word"]);
  await writeFile(join(directory, "htpasswd"), stdout);
  const { host } = await startRegistry(
    t,
    directory,
    `auth: {htpasswd: {realm: "a realm", path: ${directory}/htpasswd}}\n`,
  );
  await push(directory, host, [{ bytes: content, title: "disk.raw" }], "--dest-creds", "me:pass:word");
  const env = { DOCKER_CONFIG: directory };
  await failsWith("source-denied", open(host, env).probe(1));
  await execute(
    "skopeo",
    ["login", "--tls-verify=false", "--authfile", join(directory, "config.json"), "-u", "me", "-p", "pass:word", host],
    { timeout: 60_000 },
  );
  const backend = open(host, env);
  const { identity } = await backend.probe(1);
  assert.deepEqual(await readBytes(backend, identity, 5, 1000), content.subarray(5, 1005));
  await backend.close();
});

void test("oci: docker-registry with a token server, whose tokens end", { timeout: 120_000 }, async (t) => {
  if (!requireTool(t, "docker-registry", "skopeo", "openssl")) return;
  const directory = await temporaryDirectory(t);
  const [key, certificate] = [join(directory, "key.pem"), join(directory, "cert.pem")];
  await execute("openssl", [
    "req",
    "-x509",
    "-newkey",
    "rsa:2048",
    "-nodes",
    "-keyout",
    key,
    "-out",
    certificate,
    "-days",
    "2",
    "-subj",
    "/CN=issuer",
  ]);
  const privateKey = createPrivateKey(await readFile(key));
  const x5c = [(await readFile(certificate, "utf8")).replace(/-----[^-]+-----|\s/g, "")];
  let given = 0;
  let wrong = 0;
  const realm = createServer((request, response) => {
    const url = new URL(request.url!, "http://realm");
    if (request.headers.authorization !== `Basic ${Buffer.from("me:pass:word").toString("base64")}`) {
      wrong++;
      return response.writeHead(401).end();
    }
    const access = url.searchParams.getAll("scope").map((scope) => {
      const [type, name, actions] = scope.split(":");
      return { type, name, actions: actions.split(",") };
    });
    const now = Math.floor(Date.now() / 1000);
    const claims = {
      iss: "issuer",
      sub: "me",
      aud: url.searchParams.get("service"),
      exp: now + 2,
      nbf: now - 60,
      iat: now,
      jti: randomUUID(),
      access,
    };
    const part = (value: unknown): string => Buffer.from(JSON.stringify(value)).toString("base64url");
    const text = `${part({ typ: "JWT", alg: "RS256", x5c })}.${part(claims)}`;
    const token = `${text}.${sign("sha256", Buffer.from(text), privateKey).toString("base64url")}`;
    given++;
    return response.end(JSON.stringify({ token, expires_in: 2 }));
  });
  await new Promise<void>((resolve) => realm.listen(0, "127.0.0.1", resolve));
  atEnd(t, () => {
    realm.closeAllConnections();
    return new Promise<void>((resolve) => realm.close(() => resolve()));
  });
  const { port } = realm.address() as AddressInfo;
  const auth = `auth: {token: {realm: "http://127.0.0.1:${port}/token", service: "the registry", issuer: issuer, rootcertbundle: ${certificate}}}\n`;
  const { host } = await startRegistry(t, directory, auth);
  await push(directory, host, [{ bytes: content, title: "disk.raw" }], "--dest-creds", "me:pass:word");
  await writeFile(
    join(directory, "config.json"),
    JSON.stringify({ auths: { [host]: { auth: Buffer.from("me:pass:word").toString("base64") } } }),
  );
  await failsWith("source-denied", open(host, { DOCKER_CONFIG: join(directory, "none") }).probe(1));
  assert.equal(wrong, 1);
  const backend = open(host, { DOCKER_CONFIG: directory });
  const { identity } = await backend.probe(1);
  const before = given;
  // Longer than a token lives: each read works, whatever became of the token of the one before.
  for (let n = 0; n < 40; n++) {
    assert.deepEqual(await readBytes(backend, identity, n * 1000, 1000), content.subarray(n * 1000, n * 1000 + 1000));
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  assert.ok(given - before >= 1);
  await backend.close();
});
