import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { createReadStream } from "node:fs";
import { copyFile, mkdir, readFile, stat, writeFile } from "node:fs/promises";
import { createServer } from "node:https";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { promisify } from "node:util";
import type { VolumeView } from "../../src/daemon/views.ts";
import { pattern } from "../backend/support.ts";
import { atEnd, temporaryDirectory } from "../daemon/support.ts";
import { makePki } from "../nbd/pki.ts";
import { startNbdServer } from "../support/nbd-source.ts";
import { artifact, startFakeRegistry } from "../support/registry-fake.ts";
import { startFakeStore } from "../support/store-fake.ts";
import { requireTool } from "../support/tools.ts";
import { launch } from "./support.ts";

/* README says what `ullage run` takes: this does what it says. */

const MiB = 2 ** 20;

const execute = async (command: string, ...args: string[]): Promise<string> =>
  (await promisify(execFile)(command, args, { timeout: 60_000 })).stdout;

/** The words in code in the first column of the table behind the marker `<!-- name -->`. */
async function firstColumn(name: string): Promise<string[]> {
  const readme = await readFile(new URL("../../README.md", import.meta.url), "utf8");
  const table = new RegExp(`<!-- ${name} -->\n+((?:\\|.*\n)+)`).exec(readme)?.[1] ?? "";
  const [, , ...rows] = table.trimEnd().split("\n");
  return rows.flatMap((row) => Array.from(row.split("|")[1].matchAll(/`([^`]+)`/g), ([, word]) => word));
}

/** The disk `raw` as a file of a format; @returns its path and what `volume show` calls the format */
const formats: Record<string, (raw: string, folder: string) => Promise<[path: string, chain: string]>> = {
  raw: (raw) => Promise.resolve([raw, "raw"]),
  qcow2: (raw, folder) => converted(raw, join(folder, "disk.qcow2"), "qcow2", "qcow2"),
  vmdk: (raw, folder) => converted(raw, join(folder, "disk.vmdk"), "vmdk", "vmdk", "-o", "subformat=streamOptimized"),
  vhd: (raw, folder) => converted(raw, join(folder, "disk.vhd"), "vhd", "vpc", "-o", "subformat=dynamic,force_size=on"),
  vhdx: (raw, folder) => converted(raw, join(folder, "disk.vhdx"), "vhdx", "vhdx"),
  tar: async (raw, folder) => {
    await mkdir(join(folder, "disk"));
    await copyFile(raw, join(folder, "disk/disk.img"));
    await execute("tar", "-C", folder, "-cf", join(folder, "disk.tar"), "disk/disk.img");
    return [join(folder, "disk.tar"), "tar+raw"];
  },
  zstd: async (raw, folder) => {
    await execute("zstd", "-q", raw, "-o", join(folder, "disk.zst"));
    return [join(folder, "disk.zst"), "zstd+raw"];
  },
  gzip: async (raw, folder) => packed("gzip", raw, join(folder, "gzip"), "disk.gz"),
  xz: async (raw, folder) => packed("xz", raw, join(folder, "xz"), "disk.xz"),
};

async function converted(raw: string, path: string, chain: string, ...options: string[]): Promise<[string, string]> {
  const [format, ...more] = options;
  await execute("qemu-img", "convert", "-f", "raw", "-O", format, ...more, raw, path);
  return [path, chain];
}

async function packed(program: "gzip" | "xz", raw: string, folder: string, name: string): Promise<[string, string]> {
  await mkdir(folder);
  await copyFile(raw, join(folder, "disk"));
  await execute(program, "-1", "-S", `.${name.split(".")[1]}`, join(folder, "disk"));
  return [join(folder, name), `${program}+raw`];
}

interface Offer {
  source: string;
  flags?: string[];
  env?: NodeJS.ProcessEnv;
}

/** Offers a file as a source of a scheme. */
const kinds: Record<string, (t: TestContext, path: string) => Promise<Offer>> = {
  "/": (_, path) => Promise.resolve({ source: path }),
  https: async (t, path) => {
    const pki = await makePki(await temporaryDirectory(t), "web");
    const [key, cert] = [await readFile(join(pki, "server-key.pem")), await readFile(join(pki, "server-cert.pem"))];
    const { size } = await stat(path);
    const server = createServer({ key, cert }, (request, response) => {
      const [, first, last] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? "") ?? [];
      const [start, end] = first === undefined ? [0, size - 1] : [Number(first), Math.min(Number(last), size - 1)];
      const range = { "content-range": `bytes ${start}-${end}/${size}` };
      response.writeHead(first === undefined ? 200 : 206, {
        etag: '"one"',
        "content-length": end - start + 1,
        ...(first === undefined ? {} : range),
      });
      createReadStream(path, { start, end }).pipe(response);
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    atEnd(t, async () => {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    });
    const env = { NODE_EXTRA_CA_CERTS: join(pki, "ca-cert.pem") };
    return { source: `https://localhost:${(server.address() as AddressInfo).port}/debian.img`, env };
  },
  s3: async (t, path) => {
    const store = await startFakeStore("s3");
    atEnd(t, async () => store[Symbol.asyncDispose]());
    store.keys.set("ID", { secret: "secret" });
    store.put("images", "debian.img", await readFile(path));
    const keys = { AWS_ACCESS_KEY_ID: "ID", AWS_SECRET_ACCESS_KEY: "secret" };
    return { source: "s3://images/debian.img", env: { ...keys, AWS_ENDPOINT_URL_S3: store.origin } };
  },
  oss: async (t, path) => {
    const store = await startFakeStore("oss");
    atEnd(t, async () => store[Symbol.asyncDispose]());
    store.keys.set("ID", { secret: "secret" });
    store.put("images", "debian.img", await readFile(path));
    const keys = { ALIBABA_CLOUD_ACCESS_KEY_ID: "ID", ALIBABA_CLOUD_ACCESS_KEY_SECRET: "secret" };
    const env = { ...keys, OSS_ENDPOINT: store.origin, OSS_REGION: "cn-hangzhou" };
    return { source: "oss://images/debian.img", env };
  },
  oci: async (t, path) => {
    const registry = await startFakeRegistry();
    atEnd(t, async () => registry[Symbol.asyncDispose]());
    registry.putManifest("team/debian", "12", artifact(registry.putBlob(await readFile(path))));
    return { source: `oci://${registry.host}/team/debian:12`, env: { DOCKER_CONFIG: "/nonexistent" } };
  },
  nbd: async (t, path) => ({ source: await startNbdServer(t, path), flags: ["--unpinned"] }),
};

void test(
  "`ullage run` takes every kind of source and every format that README names",
  { timeout: 170_000 },
  async (t) => {
    if (!requireTool(t, "qemu-img", "nbd-server", "certtool", "zstd", "xz")) return;
    const named = (await firstColumn("sources")).map((source) => (source.startsWith("/") ? "/" : source.split(":")[0]));
    assert.deepEqual(named, Object.keys(kinds));
    const formatNames = await firstColumn("formats");
    assert.deepEqual(formatNames.toSorted(), Object.keys(formats).toSorted());

    const folder = await temporaryDirectory(t);
    const raw = join(folder, "disk.raw");
    await writeFile(raw, Buffer.concat([pattern(MiB), Buffer.alloc(2 * MiB), pattern(MiB, 3)]));
    // Every format from two kinds of sources, every kind of source with three formats.
    const pairs = formatNames.flatMap((format, index) =>
      [index, index + 3].map((at) => [format, named[at % named.length]] as const),
    );
    const files = new Map<string, [string, string]>();
    for (const format of formatNames) files.set(format, await formats[format](raw, folder));
    const runOne = async ([format, kind]: readonly [string, string]): Promise<void> => {
      await t.test(`${format} from ${kind}`, async (inner) => {
        const [path, chain] = files.get(format)!;
        const { source, flags = [], env = {} } = await kinds[kind](inner, path);
        const disk = await launch<{ uri: string; volume: VolumeView }>(
          inner,
          ["run", source, ...flags, "--nbd", "127.0.0.1:0"],
          { env },
        );
        assert.equal(disk.announced.volume.format, chain);
        const compared = await execute("qemu-img", "compare", "-f", "raw", "-F", "raw", disk.announced.uri, raw);
        assert.match(compared, /identical/);
        assert.equal((await disk.stop()).code, 0);
      });
    };
    const waiting = [...pairs];
    const worker = async (): Promise<void> => {
      for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) await runOne(next);
    };
    await Promise.all([worker(), worker()]);
  },
);
