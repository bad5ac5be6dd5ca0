import assert from "node:assert/strict";
import { test } from "node:test";
import type { BlobView, ImageView } from "../../src/daemon/views.ts";
import { startHttpSource } from "../support/http-source.ts";
import { artifact, startFakeRegistry } from "../support/registry-fake.ts";
import { launchDaemon } from "./support.ts";

void test("images and the cache are listed, and an image is shown by what its user calls it", async (t) => {
  const daemon = await launchDaemon(t);
  assert.match((await daemon.cli(["image", "ls"])).stdout, /there are no images/);
  assert.match((await daemon.cli(["cache", "ls"])).stdout, /there is nothing in the cache/);
  await using source = await startHttpSource({ content: Buffer.alloc(1 << 20, 1) });
  for (const [name, query] of Object.entries({ a: "", b: "?key=one", c: "?key=two" })) {
    await daemon.json(["volume", "create", name, "--from", source.url + query, "--hydrate", "off"]);
  }
  const { images } = await daemon.json<{ images: ImageView[] }>(["image", "ls"]);
  const { blobs } = await daemon.json<{ blobs: BlobView[] }>(["cache", "ls"]);
  assert.deepEqual([images.length, blobs.length], [3, 3]);
  const table = (await daemon.cli(["image", "ls"])).stdout;
  assert.match(table, /^IMAGE +FORMAT +SIZE +CACHED +VERSIONS +VOLUMES +SOURCE$/m);
  assert.match(table, /^[0-9a-f]{12} +raw +1M +\S+ +1 +1 +http:.*disk\.img$/m);
  const cache = (await daemon.cli(["cache", "ls"])).stdout;
  assert.match(cache, /^BLOB +SIZE +READY +ON DISK +WAITED FOR +AHEAD +VOLUMES +SOURCE IS +SOURCE$/m);
  assert.match(cache, /^[0-9a-f]{12} +1M .*disk\.img\?…$/m);
  assert.match(cache, /ready, \S+ on disk$/m);

  const image = images.find(({ volumes }) => volumes[0] === "a")!;
  assert.deepEqual(await daemon.json(["image", "show", source.url]), image);
  assert.deepEqual(await daemon.json(["image", "show", image.id.slice(0, 12)]), image);
  const shown = (await daemon.cli(["image", "show", image.id])).stdout;
  assert.match(shown, new RegExp(`^version +${image.blobs[0]}: .* of 1M, etag:`, "m"));
  assert.match(shown, /^volumes +a$/m);

  // Which of two secret addresses is meant can't be told from what may be shown.
  const cases: [string[], number, RegExp][] = [
    [["image", "show", `${source.url}?key=two`], 1, /is 2 images[^]*name one by its id: [0-9a-f]{12}, [0-9a-f]{12}/],
    [["image", "show", "nothing"], 1, /no image 'nothing'[^]*image ls/],
    [["image", "show", "0"], 1, /no image '0'/],
    [["image", "show"], 2, /missing required argument/],
    [["image", "sho", "x"], 2, /Did you mean show/],
    [["cache", "ls", "x"], 2, /too many arguments/],
  ];
  for (const [args, code, message] of cases) {
    const result = await daemon.cli(args);
    assert.equal(result.code, code, `${args.join(" ")}: ${result.stderr}`);
    assert.match(result.stderr, message);
    assert.ok(!result.stderr.includes("key=two"), result.stderr);
  }
});

void test("a volume and an image say by what they are pinned, and whether they were compared with that", async (t) => {
  const daemon = await launchDaemon(t);
  await using registry = await startFakeRegistry();
  const { digest, size } = registry.putBlob(Buffer.alloc(1 << 20, 1));
  registry.putManifest("team/disk", "v1", artifact({ digest, size }));
  const source = `oci://${registry.host}/team/disk:v1`;
  await daemon.json(["volume", "create", "a", "--from", source, "--hydrate", "off"]);
  const show = async (...args: string[]): Promise<string> => (await daemon.cli([...args])).stdout;
  const pending = new RegExp(`^pinned by +digest:${digest}, not compared with it yet$`, "m");
  assert.match(await show("volume", "show", "a"), pending);
  assert.match(await show("image", "show", source), pending);
  await daemon.json(["image", "pull", source]);
  while (!(await daemon.json<ImageView>(["image", "show", source])).verified) {
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  const verified = new RegExp(`^pinned by +digest:${digest}, verified$`, "m");
  assert.match(await show("volume", "show", "a"), verified);
  assert.match(await show("image", "show", source), verified);
  await daemon.json(["volume", "create", "empty", "--size", "1M"]);
  assert.doesNotMatch(await show("volume", "show", "empty"), /pinned by/);
});
