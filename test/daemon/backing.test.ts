import assert from "node:assert/strict";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { basename, join } from "node:path";
import { test, type TestContext } from "node:test";
import { backingSource } from "../../src/backend/backing-name.ts";
import type { Ullage } from "../../src/daemon/ullage.ts";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { makeDisk, run } from "../image/support.ts";
import { makeBlobsOlder } from "../support/older-blobs.ts";
import { requireTool } from "../support/tools.ts";
import { atEnd, openUllage, temporaryDirectory } from "./support.ts";

const MIB = 1024 * 1024;

async function readVolume(ullage: Ullage, name: string): Promise<Buffer> {
  const { size } = await ullage.showVolume(name);
  const buffer = new IoBuffer(size);
  await (await ullage.getDevice(name)).read(0, size, buffer, 0);
  return buffer.bytes;
}

const create = (ullage: Ullage, name: string, source: string, more = {}): Promise<unknown> =>
  ullage.createVolume({ name, from: { source, allowBacking: true, ...more }, settings: { hydrate: "off" } });

/** base <- middle <- top, each with writes of its own; the base is smaller than what lies on it. */
function makeChain(dir: string, format: string, ...flags: string[]): { top: string; raw: Buffer } {
  mkdirSync(join(dir, "below"), { recursive: true });
  const [raw, base, middle, top] = ["raw", "below/base", "below/middle", "top"].map((name) => join(dir, name));
  makeDisk(raw, 9 * MIB);
  run("qemu-img", "convert", "-f", "raw", "-O", format, ...flags, raw, base);
  run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", format, middle, "12M");
  run(
    "qemu-io",
    "-f",
    "qcow2",
    "-c",
    "write -P 17 1M 100k",
    "-c",
    "write -z 3M 1M",
    "-c",
    "write -P 18 8900k 500k",
    middle,
  );
  run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "below/middle", "-F", "qcow2", top, "16M");
  run("qemu-io", "-f", "qcow2", "-c", "write -P 33 1060k 9k", "-c", "write -P 34 11M 70k", "-c", "discard 7M 1M", top);
  run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", top, join(dir, "expected"));
  return { top, raw: readFileSync(join(dir, "expected")) };
}

/** Serves the files of a directory, with ranges. */
async function serve(t: TestContext, dir: string): Promise<string> {
  const server = createServer((request, response) => {
    let content: Buffer;
    try {
      content = readFileSync(join(dir, decodeURIComponent(new URL(request.url!, "http://h").pathname)));
    } catch {
      response.writeHead(404).end();
      return;
    }
    const etag = `"${content.length}-${basename(request.url!)}"`;
    const [, from, to] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? "") ?? [];
    if (from === undefined) {
      response.writeHead(200, { etag, "content-length": content.length }).end(content);
      return;
    }
    const end = Math.min(Number(to), content.length - 1);
    const range = `bytes ${from}-${end}/${content.length}`;
    response.writeHead(206, { etag, "content-range": range }).end(content.subarray(Number(from), end + 1));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  atEnd(t, () => new Promise((resolve) => server.close(resolve).closeAllConnections()));
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

for (const [format, ...flags] of [
  ["raw"],
  ["qcow2", "-c"],
  ["vmdk", "-o", "subformat=streamOptimized"],
  ["vpc", "-o", "force_size=on"],
  ["vhdx"],
]) {
  void test(`an image on two others, the last one ${format}, is the disk that qemu-img sees, from files and over HTTP`, async (t) => {
    if (!requireTool(t, "qemu-img", "qemu-io")) return;
    const dir = await temporaryDirectory(t);
    const { top, raw } = makeChain(dir, format, ...flags);
    const dataDir = join(dir, "data");
    let ullage = await openUllage(t, { dataDir });
    const web = await serve(t, dir);
    await create(ullage, "file", top);
    await create(ullage, "web", `${web}/top`);
    await assert.rejects(ullage.createVolume({ name: "no", from: { source: top } }), { code: "image-unsupported" });
    assert.ok((await readVolume(ullage, "file")).equals(raw));
    await ullage.close();
    ullage = await openUllage(t, { dataDir });
    assert.ok((await readVolume(ullage, "web")).equals(raw));
    await create(ullage, "again", top);
    const blobs = await ullage.listBlobs();
    assert.equal(blobs.length, 2, "the third volume shares the first one's blob");
  });
}

void test("images that an older version pinned, with their devices, are shared by a new volume until one below changes", async (t) => {
  if (!requireTool(t, "qemu-img", "qemu-io")) return;
  const dir = await temporaryDirectory(t);
  const { top, raw } = makeChain(dir, "raw");
  const dataDir = join(dir, "data");
  const first = await openUllage(t, { dataDir });
  await create(first, "old", top);
  await (await first.getDevice("old")).read(0, 4096, new IoBuffer(4096), 0);
  await first.close();
  makeBlobsOlder(dataDir);
  const ullage = await openUllage(t, { dataDir });
  await create(ullage, "shares", top);
  const [blob, ...others] = await ullage.listBlobs();
  assert.deepEqual([blob.volumes, others.length], [["old", "shares"], 0]);
  assert.match(blob.identity ?? "", /^file:\d+:\d+:\d+$/);
  for (const name of ["old", "shares"]) assert.ok((await readVolume(ullage, name)).equals(raw));
  writeFileSync(join(dir, "below", "base"), Buffer.alloc(9 * MIB, 99));
  await create(ullage, "new", top);
  assert.equal((await ullage.listBlobs()).length, 2);
});

void test("an image below that has changed fails reads, though the image itself has not; a new volume gets the new version", async (t) => {
  if (!requireTool(t, "qemu-img", "qemu-io")) return;
  const dir = await temporaryDirectory(t);
  const { top } = makeChain(dir, "raw");
  const dataDir = join(dir, "data");
  const first = await openUllage(t, { dataDir });
  await create(first, "old", top);
  await first.close();
  writeFileSync(join(dir, "below", "base"), Buffer.alloc(9 * MIB, 99));
  run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", top, join(dir, "expected"));
  const ullage = await openUllage(t, { dataDir });
  await assert.rejects(readVolume(ullage, "old"), (error: Error) => /changed|EIO/.test(String(error)));
  await create(ullage, "new", top);
  assert.ok((await readVolume(ullage, "new")).equals(readFileSync(join(dir, "expected"))));
});

void test("images on others that lead in a circle, too deep, elsewhere, or say no format are refused", async (t) => {
  if (!requireTool(t, "qemu-img")) return;
  const dir = await temporaryDirectory(t);
  const ullage = await openUllage(t);
  const make = (name: string, backing: string, format: string): string => {
    const path = join(dir, name);
    run("qemu-img", "create", "-q", "-f", "qcow2", path, "4M");
    run("qemu-img", "rebase", "-q", "-f", "qcow2", "-u", "-b", backing, "-F", format, path);
    return path;
  };
  const refused = (source: string, message: RegExp, more = {}): Promise<void> =>
    assert.rejects(create(ullage, "v", source, more), (error: Error & { code: string }) => {
      assert.match(`${error.code}: ${error.message}`, message);
      return true;
    });
  make("b", "a", "qcow2");
  await refused(make("a", "b", "qcow2"), /image-unsupported: .*lies on itself/);
  await refused(make("self", "./x/../self", "qcow2"), /lies on itself/);
  for (let n = 0; n < 20; n++) make(`deep${n}`, `deep${n + 1}`, "qcow2");
  await refused(join(dir, "deep0"), /more than 16 others/);
  await refused(make("gone", "nothing", "raw"), /source-not-found/);
  await refused(make("odd", "b", "blkdebug"), /format blkdebug/);
  const packed = readFileSync(join(dir, "odd"));
  packed.write("gzip+raw", packed.indexOf("blkdebug"));
  writeFileSync(join(dir, "packed"), packed);
  await refused(join(dir, "packed"), /format gzip\+raw/);
  packed.fill(0, packed.indexOf("gzip+raw") - 8, packed.indexOf("gzip+raw")); // no such extension of the header
  writeFileSync(join(dir, "unsaid"), packed);
  await refused(join(dir, "unsaid"), /does not say in which format/);
  const web = await serve(t, dir);
  writeFileSync(join(dir, "secret"), Buffer.alloc(4 * MIB, "secret"));
  make("escaping", join(dir, "secret"), "raw");
  await refused(`${web}/escaping`, /lies elsewhere than http/);
  const header = readFileSync(join(dir, "escaping"));
  const name = Buffer.from(join(dir, "secret"));
  const at = header.indexOf(name);
  for (const other of ["json:{}", "nbd:host:1", "file:///etc", "..\\..\\x\0y"]) {
    header.fill(0, at, at + name.length);
    header.write(other, at, "latin1");
    header.writeUInt32BE(other.length, 16);
    writeFileSync(join(dir, "odd-name"), header);
    await refused(`${web}/odd-name`, /image-unsupported|image-damaged/);
  }
  assert.deepEqual(await ullage.listBlobs(), []);
});

void test("who asks over the network gets nothing below an image that the policy does not let him name", async (t) => {
  if (!requireTool(t, "qemu-img", "qemu-io")) return;
  const dir = await temporaryDirectory(t);
  mkdirSync(join(dir, "images"));
  writeFileSync(join(dir, "secret"), Buffer.alloc(MIB, "secret"));
  const image = join(dir, "images", "image");
  run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "../secret", "-F", "raw", image);
  const ullage = await openUllage(t, { allowSources: [`file:${join(dir, "images")}/`] });
  const from = { source: image, allowBacking: true };
  await assert.rejects(ullage.createVolume({ name: "v", from }, undefined, { guarded: true }), {
    code: "source-forbidden",
  });
});

void test("a backing file's name is taken relative to its image's place, and leads to no other server", () => {
  for (const [url, name, expected] of [
    ["/images/a/top", "base", "/images/a/base"],
    ["/images/a/top", "../b/base.raw", "/images/b/base.raw"],
    ["/images/top", "/other/base", "/other/base"],
    ["/images/top", "https://example.org/base", "https://example.org/base"],
    ["https://example.org/a/top?x=1", "base 1", "https://example.org/a/base%201"],
    ["https://example.org/a/top", "../base?q#f", "https://example.org/base%3Fq%23f"],
    ["https://example.org/a/top", "https://example.org/b", "https://example.org/b"],
    ["s3://bucket/a/top?versionId=7", "../base", "s3://bucket/base"],
    ["s3://bucket/top", "x/base", "s3://bucket/x/base"],
  ]) {
    assert.equal(backingSource(url, name), expected);
  }
  for (const [url, name] of [
    ["https://example.org/a/top", "/etc/passwd"],
    ["https://example.org/a/top", "//evil.example/base"],
    ["https://example.org/a/top", "https://evil.example/base"],
    ["https://example.org/a/top", "https://example.org.evil.example/base"],
    ["https://example.org/a/top", "http://example.org/base"],
    ["https://example.org/a/top", "file:///etc/passwd"],
    ["s3://bucket/top", "s3://other/base"],
    ["oci://registry.example.org/disk:1", "base"],
    ["nbd://host/export", "base"],
    ["/images/top", "json:{}"],
    ["/images/top", "nbd:host:10809"],
  ]) {
    assert.throws(() => backingSource(url, name), { code: "image-unsupported" }, `${url} ${name}`);
  }
});
