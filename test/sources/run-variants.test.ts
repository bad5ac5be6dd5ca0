import { test } from "node:test";
import { byFormat, makeContainedImages, makePlainImages } from "../support/disk-images.ts";
import { otherKinds, readmeKinds } from "../support/offered-images.ts";
import { runAll, smallDisk } from "../support/run-images.ts";
import { requireTool } from "../support/tools.ts";

/* What test/cli/run-sources.test.ts has no time for. */

void test(
  "`ullage run` takes every further variant of a format from every kind of source",
  { timeout: 280_000 },
  async (t) => {
    const kinds = Object.values(readmeKinds);
    if (!requireTool(t, "qemu-img", "zstd", "xz", ...kinds.flatMap(({ tools }) => tools))) return;
    const { raw, images: folder } = await smallDisk(t);
    const images = await makePlainImages(raw.path, folder);
    await runAll(t, raw, kinds, byFormat(images).others);
  },
);

void test(
  "`ullage run` takes every format from block devices, http, redirects, sockets and TLS",
  { timeout: 280_000 },
  async (t) => {
    if (!requireTool(t, "qemu-img", "zstd", "xz", ...otherKinds.flatMap(({ tools }) => tools))) return;
    const { raw, images: folder } = await smallDisk(t);
    await runAll(t, raw, otherKinds, await makePlainImages(raw.path, folder));
  },
);

void test(
  "`ullage run` takes every format in every container, lazily and as a whole",
  { timeout: 280_000 },
  async (t) => {
    if (!requireTool(t, "qemu-img", "zstd", "xz")) return;
    const { raw, images: folder } = await smallDisk(t);
    const images = await makeContainedImages(raw.path, folder);
    const withoutRanges = otherKinds.filter(({ name }) => name === "http without ranges");
    await runAll(t, raw, [readmeKinds["/"], ...withoutRanges], images);
  },
);
