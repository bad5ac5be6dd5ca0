import { execFile } from "node:child_process";
import { createReadStream } from "node:fs";
import { readFile, stat, truncate } from "node:fs/promises";
import { createServer as createPlainServer, type RequestListener } from "node:http";
import { createServer } from "node:https";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import type { TestContext } from "node:test";
import { promisify } from "node:util";
import { atEnd, temporaryDirectory } from "../daemon/support.ts";
import { makePki } from "../nbd/pki.ts";
import type { DiskImage } from "./disk-images.ts";
import { startNbdkit, startNbdkitOnTcp, startNbdServer } from "./nbd-source.ts";
import { artifact, startFakeRegistry } from "./registry-fake.ts";
import { startFakeStore } from "./store-fake.ts";
import type { ToolName } from "./tools.ts";

/** Where an image is offered, and what `ullage run` needs beside it. */
export interface Offer {
  source: string;
  flags?: readonly string[];
  env?: NodeJS.ProcessEnv;
}

/** A kind of source: offers images until the test ends. */
export interface OfferKind {
  name: string;
  tools: readonly ToolName[];
  start(t: TestContext, images: readonly DiskImage[]): Promise<(image: DiskImage) => Offer | Promise<Offer>>;
}

/** A server of files at `/NAME`, pinned by an ETag. */
function fileServer(images: readonly DiskImage[], ranges: boolean): RequestListener {
  return (request, response) => {
    const image = images.find(({ name }) => request.url === `/${name}`);
    const answer = async (): Promise<void> => {
      if (image === undefined) {
        response.writeHead(404, { "content-length": 0 }).end();
        return;
      }
      const { size } = await stat(image.path);
      const [, first, last] = (ranges && /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? "")) || [];
      const [start, end] = first === undefined ? [0, size - 1] : [Number(first), Math.min(Number(last), size - 1)];
      response.writeHead(first === undefined ? 200 : 206, {
        etag: `"${image.name}"`,
        "content-length": end - start + 1,
        ...(first === undefined ? {} : { "content-range": `bytes ${start}-${end}/${size}` }),
      });
      createReadStream(image.path, { start, end }).pipe(response);
    };
    answer().catch((error: unknown) => response.destroy(error as Error));
  };
}

async function listening(t: TestContext, server: ReturnType<typeof createPlainServer>): Promise<number> {
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  atEnd(t, async () => {
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  });
  return (server.address() as AddressInfo).port;
}

const http = (name: string, ranges: boolean): OfferKind => ({
  name,
  tools: [],
  async start(t, images) {
    const port = await listening(t, createPlainServer(fileServer(images, ranges)));
    const flags = ranges ? [] : ["--download"];
    return (image) => ({ source: `http://127.0.0.1:${port}/${image.name}`, flags });
  },
});

const store = (scheme: "s3" | "oss", environment: (origin: string) => NodeJS.ProcessEnv): OfferKind => ({
  name: scheme,
  tools: [],
  async start(t, images) {
    const fake = await startFakeStore(scheme);
    atEnd(t, async () => fake[Symbol.asyncDispose]());
    fake.keys.set("ID", { secret: "secret" });
    for (const { name, path } of images) fake.put("images", name, await readFile(path));
    const env = environment(fake.origin);
    return ({ name }) => ({ source: `${scheme}://images/${name}`, env });
  },
});

const registry = (redirects: boolean): OfferKind => ({
  name: redirects ? "oci, redirected" : "oci",
  tools: [],
  async start(t, images) {
    const fake = await startFakeRegistry();
    atEnd(t, async () => fake[Symbol.asyncDispose]());
    fake.redirects = redirects;
    for (const { name, path } of images) {
      fake.putManifest(`team/${name}`, "12", artifact(fake.putBlob(await readFile(path))));
    }
    return ({ name }) => ({ source: `oci://${fake.host}/team/${name}:12`, env: { DOCKER_CONFIG: "/nonexistent" } });
  },
});

/** One for each row of README's table, by the scheme that the row begins with. */
export const readmeKinds: Readonly<Record<string, OfferKind>> = {
  "/": {
    name: "a file",
    tools: [],
    start: () => Promise.resolve(({ path }) => ({ source: path })),
  },
  https: {
    name: "https",
    tools: ["certtool"],
    async start(t, images) {
      const pki = await makePki(await temporaryDirectory(t), "web");
      const [key, cert] = [await readFile(join(pki, "server-key.pem")), await readFile(join(pki, "server-cert.pem"))];
      const port = await listening(t, createServer({ key, cert }, fileServer(images, true)));
      const env = { NODE_EXTRA_CA_CERTS: join(pki, "ca-cert.pem") };
      return ({ name }) => ({ source: `https://localhost:${port}/${name}`, env });
    },
  },
  s3: store("s3", (origin) => ({
    AWS_ACCESS_KEY_ID: "ID",
    AWS_SECRET_ACCESS_KEY: "secret",
    AWS_ENDPOINT_URL_S3: origin,
  })),
  oss: store("oss", (origin) => ({
    ALIBABA_CLOUD_ACCESS_KEY_ID: "ID",
    ALIBABA_CLOUD_ACCESS_KEY_SECRET: "secret",
    OSS_ENDPOINT: origin,
    OSS_REGION: "cn-hangzhou",
  })),
  oci: registry(false),
  nbd: {
    name: "nbd",
    tools: ["nbd-server"],
    async start(t, images) {
      const uri = await startNbdServer(t, Object.fromEntries(images.map(({ name, path }) => [name, path])));
      return ({ name }) => ({ source: uri(name), flags: ["--unpinned"] });
    },
  },
};

/** What else the rows of README's table name, and what docs/SOURCES.md tells of them. */
export const otherKinds: readonly OfferKind[] = [
  {
    name: "a block device",
    tools: ["losetup", "root", "loop"],
    start: (t) =>
      Promise.resolve(async ({ path }) => {
        // A device ends with a sector: what is behind the image reads as zeros there.
        const { size } = await stat(path);
        await truncate(path, Math.ceil(size / 512) * 512);
        const losetup = (...args: string[]): Promise<{ stdout: string }> =>
          promisify(execFile)("losetup", args, { timeout: 20_000 });
        const device = (await losetup("--find", "--show", "--read-only", path)).stdout.trim();
        atEnd(t, () => losetup("--detach", device));
        return { source: device };
      }),
  },
  http("http", true),
  http("http without ranges", false),
  registry(true),
  {
    name: "nbd over a unix socket",
    tools: ["nbdkit"],
    async start(t, images) {
      const server = await startNbdkit(t, "-r", "file", `dir=${folderOf(images)}`);
      return ({ name }) => ({ source: server.uri(name), flags: ["--unpinned"] });
    },
  },
  {
    name: "nbds",
    tools: ["nbdkit", "certtool"],
    async start(t, images) {
      const pki = await makePki(await temporaryDirectory(t), "nbd");
      const tls = ["--tls=require", `--tls-certificates=${pki}`];
      const port = await startNbdkitOnTcp(t, "-r", ...tls, "file", `dir=${folderOf(images)}`);
      const parameters = `?tls-certificates=${pki}`;
      return ({ name }) => ({ source: `nbds://localhost:${port}/${name}${parameters}`, flags: ["--unpinned"] });
    },
  },
];

/** All of them lie in one. */
const folderOf = (images: readonly DiskImage[]): string => join(images[0].path, "..");
