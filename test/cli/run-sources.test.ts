import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import { byFormat, makePlainImages } from "../support/disk-images.ts";
import { readmeKinds } from "../support/offered-images.ts";
import { runAll, smallDisk } from "../support/run-images.ts";
import { requireTool } from "../support/tools.ts";

/* README says what `ullage run` takes: this does what it says. test/sources/run-variants.test.ts does the rest. */

/** The words in code in the first column of the table behind the marker `<!-- name -->`. */
async function firstColumn(name: string): Promise<string[]> {
  const readme = await readFile(new URL("../../README.md", import.meta.url), "utf8");
  const table = new RegExp(`<!-- ${name} -->\n+((?:\\|.*\n)+)`).exec(readme)?.[1] ?? "";
  const [, , ...rows] = table.trimEnd().split("\n");
  return rows.flatMap((row) => Array.from(row.split("|")[1].matchAll(/`([^`]+)`/g), ([, word]) => word));
}

void test(
  "`ullage run` takes every kind of source with every format that README names",
  { timeout: 8 * 60_000 },
  async (t) => {
    const kinds = Object.values(readmeKinds);
    if (!requireTool(t, "qemu-img", "zstd", "xz", ...kinds.flatMap(({ tools }) => tools))) return;
    const named = (await firstColumn("sources")).map((source) => (source.startsWith("/") ? "/" : source.split(":")[0]));
    assert.deepEqual(named, Object.keys(readmeKinds));

    const { raw, images: folder } = await smallDisk(t);
    const images = byFormat(await makePlainImages(raw.path, folder)).first;
    const formats = images.map(({ chain }) => chain.split("+")[0]);
    assert.deepEqual(formats.toSorted(), (await firstColumn("formats")).toSorted());
    await runAll(t, raw, kinds, images);
  },
);
