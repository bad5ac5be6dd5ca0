import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { temporaryDirectory } from "../daemon/support.ts";
import { byFormat, makeContainedImages, makePlainImages } from "../support/disk-images.ts";
import { otherKinds, readmeKinds } from "../support/offered-images.ts";
import { makeSmallDisk, runAll } from "../support/run-images.ts";
import { requireTool } from "../support/tools.ts";

/* What test/cli/run-sources.test.ts has no time for. */

void test(
  "`ullage run` takes every further variant of a format from every kind of source",
  { timeout: 280_000 },
  async (t) => {
    const kinds = Object.values(readmeKinds);
    if (!requireTool(t, "qemu-img", "zstd", "xz", ...kinds.flatMap(({ tools }) => tools))) return;
    const folder = await temporaryDirectory(t);
    const path = join(folder, "disk");
    const size = await makeSmallDisk(path);
    await mkdir(join(folder, "images"));
    const images = await makePlainImages(path, join(folder, "images"));
    await runAll(t, { path, size }, kinds, byFormat(images).others);
  },
);

void test(
  "`ullage run` takes every format from block devices, http, redirects, sockets and TLS",
  { timeout: 280_000 },
  async (t) => {
    if (!requireTool(t, "qemu-img", "zstd", "xz", ...otherKinds.flatMap(({ tools }) => tools))) return;
    const folder = await temporaryDirectory(t);
    const path = join(folder, "disk");
    const size = await makeSmallDisk(path);
    await mkdir(join(folder, "images"));
    await runAll(t, { path, size }, otherKinds, await makePlainImages(path, join(folder, "images")));
  },
);

void test(
  "`ullage run` takes every format in every container, lazily and as a whole",
  { timeout: 280_000 },
  async (t) => {
    if (!requireTool(t, "qemu-img", "zstd", "xz")) return;
    const folder = await temporaryDirectory(t);
    const path = join(folder, "disk");
    const size = await makeSmallDisk(path);
    await mkdir(join(folder, "images"));
    const images = await makeContainedImages(path, join(folder, "images"));
    const withoutRanges = otherKinds.filter(({ name }) => name === "http without ranges");
    await runAll(t, { path, size }, [readmeKinds["/"], ...withoutRanges], images);
  },
);
