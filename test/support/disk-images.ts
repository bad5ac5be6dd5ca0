import { execFile } from "node:child_process";
import { mkdir, rename, symlink, unlink } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { packSeekable } from "../image/seekable.ts";

/** One disk as an image: a file of some format. */
export interface DiskImage {
  /** Which format in which variant; the image's name in its folder, too. */
  name: string;
  /** What `volume show` calls the format. */
  chain: string;
  path: string;
}

/** `RAW` is the disk, `OUT` the image; each runs in a folder of its own. */
interface Recipe {
  chain: string;
  command: string;
}

const converted = (chain: string, options: string): Recipe => ({
  chain,
  command: `qemu-img convert -f raw ${options} RAW OUT`,
});

/** Every variant of every format that docs/SOURCES.md says can be read, by its name. */
const plain: Record<string, Recipe> = {
  raw: { chain: "raw", command: "cp RAW OUT" },
  qcow2: converted("qcow2", "-O qcow2"),
  "qcow2-zlib": converted("qcow2", "-c -O qcow2 -o compression_type=zlib"),
  "qcow2-zstd": converted("qcow2", "-c -O qcow2 -o compression_type=zstd"),
  "vmdk-sparse": converted("vmdk", "-O vmdk -o subformat=monolithicSparse"),
  "vmdk-stream": converted("vmdk", "-O vmdk -o subformat=streamOptimized"),
  "vhd-dynamic": converted("vhd", "-O vpc -o subformat=dynamic,force_size=on"),
  "fixed.vhd": converted("vhd", "-O vpc -o subformat=fixed,force_size=on"),
  "vhdx-dynamic": converted("vhdx", "-O vhdx -o subformat=dynamic"),
  "vhdx-fixed": converted("vhdx", "-O vhdx -o subformat=fixed"),
  tar: { chain: "tar+raw", command: "mkdir disk && cp RAW disk/disk.img && tar -cf OUT disk" },
  zstd: { chain: "zstd+raw", command: "zstd -q -f RAW -o OUT" },
  "zstd-seekable": { chain: "zstd+raw", command: "" }, // by packSeekable
  gzip: { chain: "gzip+raw", command: "gzip -1 -c RAW > OUT" },
  xz: { chain: "xz+raw", command: "xz -1 -T1 -c RAW > OUT" },
  "xz-blocks": { chain: "xz+raw", command: "xz -1 -T1 --block-size=1MiB -c RAW > OUT" },
};

/** The first variant of each format, and all others. */
export function byFormat(images: readonly DiskImage[]): { first: DiskImage[]; others: DiskImage[] } {
  const formatOf = ({ chain }: DiskImage): string => chain.split("+")[0];
  const isFirst = (image: DiskImage): boolean => images.find((one) => formatOf(one) === formatOf(image)) === image;
  return { first: images.filter(isFirst), others: images.filter((image) => !isFirst(image)) };
}

/** Which format is in which container. */
const containers = ["tar", "zstd", "zstd-seekable", "gzip", "xz", "xz-blocks"];
const contained = ["qcow2", "qcow2-zlib", "vmdk-stream", "vhd-dynamic", "vhdx-dynamic", "tar"];

const seekableFrameBytes = 512 * 1024;

/** Makes an image of every variant. @param raw the disk @param folder where they go: `folder/NAME` */
export async function makePlainImages(raw: string, folder: string): Promise<DiskImage[]> {
  const images: DiskImage[] = [];
  for (const [name, { chain, command }] of Object.entries(plain)) {
    images.push(await makeImage({ name, chain, command }, raw, folder));
  }
  return images;
}

/** Makes an image of every format in every container, and what people have: a containerdisk's layer, an archive's archive. */
export async function makeContainedImages(raw: string, folder: string): Promise<DiskImage[]> {
  const images: DiskImage[] = [];
  for (const inner of contained) {
    const within = await makeImage({ ...plain[inner], name: inner }, raw, folder);
    for (const outer of containers) {
      const chain = `${outer.split("-")[0]}+${plain[inner].chain}`;
      images.push(
        await makeImage({ name: `${outer}-of-${inner}`, chain, command: plain[outer].command }, within.path, folder),
      );
    }
    await unlink(within.path);
  }
  const packedInTar = ["zstd", "zstd-seekable", "gzip", "xz", "xz-blocks"];
  for (const packed of packedInTar) {
    const within = await makeImage({ ...plain[packed], name: packed }, raw, folder);
    const chain = `tar+${plain[packed].chain}`;
    images.push(
      await makeImage({ name: `tar-of-${packed}`, chain, command: plain["tar"].command }, within.path, folder),
    );
    await unlink(within.path);
  }
  return images;
}

async function makeImage(recipe: Recipe & { name: string }, from: string, folder: string): Promise<DiskImage> {
  const { name, chain, command } = recipe;
  const path = join(folder, name);
  const work = join(folder, `${name}.work`);
  await mkdir(work);
  await symlink(from, join(work, "raw"));
  if (command === "") packSeekable(from, join(work, "out"), seekableFrameBytes);
  else {
    const filled = command.replace("RAW", "raw").replace("OUT", "out");
    await promisify(execFile)("sh", ["-c", filled], { cwd: work, timeout: 60_000 });
  }
  await rename(join(work, "out"), path);
  await promisify(execFile)("rm", ["-r", work]);
  return { name, chain, path };
}
