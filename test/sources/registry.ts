import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { TestContext } from "node:test";
import { promisify } from "node:util";
import { atEnd } from "../daemon/support.ts";
import { answers, freePort, startServer } from "./processes.ts";

const execute = promisify(execFile);

export const digestOf = (bytes: Buffer): string => `sha256:${createHash("sha256").update(bytes).digest("hex")}`;

/** A registry with the given `auth` section; what is in `directory` outlives it. */
export async function startRegistry(
  t: TestContext,
  directory: string,
  auth: string,
): Promise<{ host: string; restart(): Promise<void> }> {
  const port = await freePort();
  const config = join(directory, "registry.yml");
  await writeFile(
    config,
    `version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: ${directory}/storage}}\nhttp: {addr: "127.0.0.1:${port}"}\n${auth}`,
  );
  const start = () => startServer("docker-registry", ["serve", config], () => answers(`http://127.0.0.1:${port}/v2/`));
  let registry = await start();
  atEnd(t, async () => registry[Symbol.asyncDispose]());
  return {
    host: `127.0.0.1:${port}`,
    restart: async () => {
      await registry.stop();
      registry = await start();
    },
  };
}

/** Pushes an artifact with one blob by skopeo, from an OCI layout on disk. */
export async function push(
  directory: string,
  host: string,
  blobs: { bytes: Buffer; title: string }[],
  ...flags: string[]
): Promise<void> {
  const layout = join(directory, "layout");
  await mkdir(join(layout, "blobs/sha256"), { recursive: true });
  const put = async (bytes: Buffer): Promise<{ digest: string; size: number }> => {
    const digest = digestOf(bytes);
    await writeFile(join(layout, "blobs/sha256", digest.slice(7)), bytes);
    return { digest, size: bytes.length };
  };
  const config = {
    mediaType: "application/vnd.oci.image.config.v1+json",
    ...(await put(Buffer.from('{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'))),
  };
  const layers = [];
  for (const { bytes, title } of blobs) {
    layers.push({
      mediaType: "application/vnd.example.disk",
      ...(await put(bytes)),
      annotations: { "org.opencontainers.image.title": title },
    });
  }
  const mediaType = "application/vnd.oci.image.manifest.v1+json";
  const manifest = await put(Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType, config, layers })));
  await writeFile(join(layout, "oci-layout"), '{"imageLayoutVersion":"1.0.0"}');
  const annotations = { "org.opencontainers.image.ref.name": "v1" };
  await writeFile(
    join(layout, "index.json"),
    JSON.stringify({ schemaVersion: 2, manifests: [{ mediaType, ...manifest, annotations }] }),
  );
  const target = `docker://${host}/team/disk:v1`;
  await execute(
    "skopeo",
    ["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false", ...flags, `oci:${layout}:v1`, target],
    { timeout: 60_000 },
  );
}
