import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { join } from "node:path";
import { test } from "node:test";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { Ullage } from "../../src/daemon/ullage.ts";
import type { BlobView, ImageView, VolumeView } from "../../src/daemon/views.ts";
import { startHttpSource } from "../support/http-source.ts";
import { startApi, type TestApi } from "./support.ts";

interface Page<T> {
  blobs: T[];
  images: T[];
  next: string | null;
}

const megabyte = 2 ** 20;

async function blobs(api: TestApi): Promise<BlobView[]> {
  return (await api.call<Page<BlobView>>("/v1/blobs")).body.blobs;
}

async function images(api: TestApi): Promise<ImageView[]> {
  return (await api.call<Page<ImageView>>("/v1/images")).body.images;
}

async function make(api: TestApi, name: string, from: object, hydrate = "off"): Promise<VolumeView> {
  const body = { name, from, settings: { hydrate } };
  const { status, body: made } = await api.call<VolumeView>("/v1/volumes", { method: "POST", body });
  assert.equal(status, 201, JSON.stringify(made));
  return made;
}

async function read(ullage: Ullage, name: string, offset: number): Promise<void> {
  const device = await ullage.getDevice(name);
  await device.read(offset, 4096, new IoBuffer(4096), 0);
}

/** Bytes on disk, as others count them. */
function du(...paths: string[]): number {
  const lines = execFileSync("du", ["--block-size=1", ...paths], { encoding: "utf8" })
    .trim()
    .split("\n");
  return lines.reduce((sum, line) => sum + Number.parseInt(line, 10), 0);
}

void test("an image is what volumes were made from, a blob what is here of it, and the sums are those of volumes and of du", async (t) => {
  const api = await startApi(t);
  const { ullage } = api;
  await using source = await startHttpSource({ content: Buffer.alloc(8 * megabyte, 1) });
  assert.deepEqual([await blobs(api), await images(api)], [[], []]);
  await make(api, "a", { source: `${source.url}?key=hidden` });
  await make(api, "b", { source: `${source.url}?key=hidden` });
  await make(api, "c", { source: api.image }, "auto");
  await api.call("/v1/volumes/a/snapshots", { method: "POST", body: { name: "s" } });
  await make(api, "d", { snapshot: "a@s" });
  await read(ullage, "a", 3 * megabyte);
  await read(ullage, "b", 5 * megabyte);
  while ((await ullage.showVolume("c")).hydration.state !== "detached")
    await new Promise((next) => setTimeout(next, 20));

  for (const name of ["a", "b", "c", "d"]) await ullage.showVolume(name); // from here on all are open
  const all = await blobs(api);
  const remote = all.find(({ source: from }) => from === `${source.url}?…`)!;
  const local = all.find(({ source: from }) => from === api.image)!;
  assert.equal(all.length, 2);
  assert.deepEqual(remote.volumes, ["a", "b", "d"]);
  assert.deepEqual([local.volumes, local.detached], [["c"], ["c"]]);
  assert.deepEqual([remote.sourceState.state, local.sourceState.state], ["ok", "notNeeded"]);
  assert.deepEqual([remote.size, local.size, local.readyBytes], [8 * megabyte, 1_000_000, 1_000_000]);
  assert.deepEqual([remote.pinned, remote.detached], [true, []]);
  assert.match(remote.identity!, /^etag:/);
  assert.ok(remote.users >= 2);
  // What the volumes say, what came over the wire, and what the disk says.
  for (const name of remote.volumes)
    assert.equal((await ullage.showVolume(name)).fetchedBytes, remote.readyBytes, name);
  assert.ok(remote.readyBytes >= 2 * remote.unitBytes);
  assert.ok(remote.foregroundBytes >= 2 * remote.unitBytes);
  assert.ok(remote.foregroundBytes + remote.readaheadBytes + remote.backgroundBytes <= source.bytesServed);
  const { dataDirectory } = ullage.health();
  const files = all.map(({ id }) => join(dataDirectory, "blobs", id, "data"));
  const onDisk = (views: { diskBytes: number }[]): number => views.reduce((sum, { diskBytes }) => sum + diskBytes, 0);
  assert.equal(onDisk(all), du(...files));
  assert.ok(onDisk(all) >= all.reduce((sum, { readyBytes }) => sum + readyBytes, 0), "ready is on disk");

  const found = await images(api);
  assert.equal(found.length, 2);
  const image = found.find(({ id }) => id === remote.image)!;
  assert.deepEqual(image.blobs, [remote.id]);
  assert.deepEqual(
    [image.source, image.format, image.size, image.pinned, image.volumes, image.readyBytes, image.diskBytes],
    [remote.source, "raw", remote.size, true, remote.volumes, remote.readyBytes, remote.diskBytes],
  );
  for (const each of found) assert.deepEqual((await api.call(`/v1/images/${each.id}`)).body, each);
  for (const each of all) assert.deepEqual((await api.call(`/v1/blobs/${each.id}`)).body, each);
  assert.ok(!JSON.stringify([all, found]).includes("hidden"));

  // Closed, they are the same, but for what is counted while they are open.
  await ullage.close();
  const again = await Ullage.open({ dataDir: dataDirectory });
  try {
    const closed = await again.listBlobs();
    for (const [index, view] of closed.entries()) {
      assert.deepEqual(view, {
        ...all[index],
        users: 0,
        diskBytes: view.diskBytes,
        usedAt: view.usedAt, // closing it was a use
      });
    }
    assert.equal(onDisk(closed), du(...files));
    await again.removeVolume("c");
    const left = (await again.listBlobs()).find(({ id }) => id === local.id)!;
    assert.deepEqual([left.volumes, left.detached, left.readyBytes], [[], [], 1_000_000], "for the next volume");
  } finally {
    await again.close();
  }
});

void test("a source that changed is one image with two versions, the newest first; one that fails says so", async (t) => {
  const api = await startApi(t);
  await using source = await startHttpSource({ content: Buffer.alloc(megabyte, 1), etag: '"1"' });
  await make(api, "old", { source: source.url });
  source.replace(Buffer.alloc(2 * megabyte, 2));
  source.etag = '"2"';
  await new Promise((next) => setTimeout(next, 5)); // so that the clock says which is newer
  await make(api, "new", { source: source.url });
  const [image, ...none] = await images(api);
  assert.deepEqual(none, []);
  assert.deepEqual([image.size, image.identity, image.volumes], [2 * megabyte, 'etag:"2"', ["new", "old"]]);
  const versions = await Promise.all(
    image.blobs.map(async (id) => (await api.call<BlobView>(`/v1/blobs/${id}`)).body.volumes),
  );
  assert.deepEqual(versions, [["new"], ["old"]]);

  await assert.rejects(read(api.ullage, "old", megabyte / 2));
  const { sourceState } = (await api.call<BlobView>(`/v1/blobs/${image.blobs[1]}`)).body;
  assert.equal(sourceState.state, "failing");
  assert.match(sourceState.reason!, /disk\.img/);
  assert.equal(new Date(sourceState.at!).toISOString(), sourceState.at);
});

void test("lists of images and blobs go on where `next` says", async (t) => {
  const api = await startApi(t);
  await using source = await startHttpSource({ content: Buffer.alloc(4096, 1) });
  for (let n = 0; n < 5; n++) await make(api, `v${n}`, { source: `${source.url}?n=${n}` });
  for (const kind of ["images", "blobs"] as const) {
    const all = kind === "images" ? await images(api) : await blobs(api);
    assert.equal(all.length, 5);
    const found: object[] = [];
    for (let cursor: string | null = ""; cursor !== null;) {
      const more: string = cursor === "" ? "" : `&cursor=${encodeURIComponent(cursor)}`;
      const { body }: { body: Page<ImageView | BlobView> } = await api.call(`/v1/${kind}?limit=2${more}`);
      found.push(...body[kind]);
      cursor = body.next;
    }
    assert.deepEqual(found, all, kind);
  }
});

void test("what is not there, and what makes no sense, is refused with a reason", async (t) => {
  const api = await startApi(t);
  const cases: [string, number, string][] = [
    ["/v1/images/0123", 404, "not-found"],
    ["/v1/blobs/0123", 404, "not-found"],
    ["/v1/blobs/..%2f..%2fcatalog.db", 404, "not-found"],
    ["/v1/images?limit=0", 400, "bad-request"],
    ["/v1/blobs?limit=201", 400, "bad-request"],
    ["/v1/blobs?limit=x", 400, "bad-request"],
    ["/v1/images?cursor=!", 400, "bad-cursor"],
    ["/v1/blobs?colour=red", 400, "bad-request"],
  ];
  for (const [path, status, code] of cases) {
    const problem = await api.refused(path);
    assert.deepEqual([problem.status, problem.code], [status, code], path);
  }
  const others: Record<string, string[]> = {
    "/v1/images": ["DELETE", "PATCH"],
    "/v1/images/x": ["POST", "PATCH"],
    "/v1/blobs": ["POST", "DELETE", "PATCH"],
    "/v1/blobs/x": ["POST", "DELETE", "PATCH"],
  };
  for (const [path, methods] of Object.entries(others)) {
    for (const method of methods) {
      assert.equal((await api.refused(path, { method })).status, 405, `${method} ${path}`);
    }
  }
});
