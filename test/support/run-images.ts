import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { TestContext } from "node:test";
import { promisify } from "node:util";
import type { VolumeView } from "../../src/daemon/views.ts";
import { pattern } from "../backend/support.ts";
import { launch } from "../cli/support.ts";
import { temporaryDirectory } from "../daemon/support.ts";
import type { DiskImage } from "./disk-images.ts";
import type { Offer, OfferKind } from "./offered-images.ts";

const MiB = 2 ** 20;
const together = 3;

/** A small disk with text, zeros between, and an odd end. @returns its size, bytes */
export async function makeSmallDisk(path: string): Promise<number> {
  const content = Buffer.concat([pattern(MiB), Buffer.alloc(2 * MiB), pattern(MiB, 3)]);
  await writeFile(path, content);
  return content.length;
}

/** The same in a folder of the test's, with an empty one for images of it. */
export async function smallDisk(t: TestContext): Promise<{ raw: { path: string; size: number }; images: string }> {
  const folder = await temporaryDirectory(t);
  const [path, images] = [join(folder, "disk"), join(folder, "images")];
  await mkdir(images);
  return { raw: { path, size: await makeSmallDisk(path) }, images };
}

/** Offers every image by every kind, and runs a disk from each: it must be the raw one, byte by byte. */
export async function runAll(
  t: TestContext,
  raw: { path: string; size: number },
  kinds: readonly OfferKind[],
  images: readonly DiskImage[],
): Promise<void> {
  const waiting: (() => Promise<unknown>)[] = [];
  for (const kind of kinds) {
    const offer = await kind.start(t, images);
    for (const image of images) {
      waiting.push(() =>
        t.test(`${image.name} from ${kind.name}`, async (inner) => runOne(inner, raw, image, await offer(image))),
      );
    }
  }
  const worker = async (): Promise<void> => {
    for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) await next();
  };
  await Promise.all(Array.from({ length: together }, worker));
}

async function runOne(
  t: TestContext,
  raw: { path: string; size: number },
  image: DiskImage,
  { source, flags = [], env = {} }: Offer,
): Promise<void> {
  // A fixed vhd begins with the disk's own bytes: where the address does not call it one, somebody has to.
  const format = image.name.endsWith(".vhd") && !/\.vhd(?:$|[?#])/.test(source) ? ["--format", "vhd"] : [];
  const command = ["run", source, ...flags, ...format, "--nbd", "127.0.0.1:0"];
  const disk = await launch<{ uri: string; volume: VolumeView }>(t, command, { env });
  assert.equal(disk.announced.volume.format, image.chain);
  assert.equal(disk.announced.volume.size, raw.size);
  const compare = ["compare", "-f", "raw", "-F", "raw", disk.announced.uri, raw.path];
  const { stdout } = await promisify(execFile)("qemu-img", compare, { timeout: 60_000 });
  assert.match(stdout, /identical/);
  assert.equal((await disk.stop()).code, 0);
}
