import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";
import { temporaryDirectory } from "../daemon/support.ts";
import { makeSmallDisk } from "../support/run-images.ts";
import { requireTool } from "../support/tools.ts";
import { run, type Result } from "./support.ts";

/*
 * What `ullage run` does not take, README and docs/SOURCES.md say; each is refused, and told what to do instead.
 */

const secret = "--object secret,id=s,data=x";
const create = (options: string): string => `qemu-img create -q ${options} OUT 4M`;
const convert = (options: string): string => `qemu-img convert -f raw ${options} raw OUT`;

/** How it is made, in a folder with `raw`; what is said; what to do. */
const images: Record<string, [command: string, said: RegExp, next: RegExp]> = {
  nothing: ["true", /OUT does not exist/, /check the path/],
  directory: ["mkdir OUT", /OUT is a directory/, /name the image in it/],
  pipe: ["mkfifo OUT", /neither a file nor a block device/, /name an image file/],
  empty: [": > OUT", /OUT is empty/, /written to its end/],
  vdi: [convert("-O vdi"), /the image is vdi/, /qemu-img convert -O raw/],
  qed: [convert("-O qed"), /the image is qed/, /qemu-img convert -O raw/],
  parallels: [convert("-O parallels"), /the image is parallels/, /qemu-img convert -O raw/],
  qcow: [convert("-O qcow"), /has version 1/, /qemu-img convert -O qcow2/],
  encrypted: [create(`-f qcow2 ${secret} -o encrypt.format=luks,encrypt.key-secret=s`), /is encrypted/, /decrypt it/],
  external: [create("-f qcow2 -o data_file=data"), /its data in another file/, /qemu-img convert -O qcow2/],
  overlay: [create("-f qcow2 -b raw -F raw"), /lies on another file, raw/, /--allow-backing/],
  corrupt: ["printf 'QFI\\373\\0\\0\\0\\3' > OUT && head -c 500 /dev/zero >> OUT", /is damaged/, /qemu-img check/],
  header: [`${convert("-O qcow2")} && truncate -s 40 OUT`, /it has 40 bytes, less than a header/, /qemu-img check/],
  flat: [convert("-O vmdk -o subformat=monolithicFlat"), /its data are in other files/, /qemu-img convert -O qcow2/],
  split: [convert("-O vmdk -o subformat=twoGbMaxExtentSparse"), /its data are in other files/, /qemu-img convert/],
  several: ["touch one two && tar -cf OUT one two", /several files that may be the disk: /, /unpack it first/],
  sparse: ["truncate -s 1M one && tar -S -cf OUT one", /as a sparse member/, /without --sparse/],
  bzip2: ["printf 'BZh91AY&SY' > OUT", /the image is bzip2/, /bunzip2/],
  lzma: ["xz --format=lzma -1 -c raw > OUT", /the image is lzma/, /unlzma/],
  sha256: ["xz -1 -c --check=sha256 raw > OUT", /has checks of type 10/, /--check=crc64/],
  filtered: ["xz -c --x86 --lzma2=preset=1 raw > OUT", /uses filter 4/, /without filters/],
  gzip: ["gzip -1 -c raw > OUT && truncate -s -1000 OUT", /the gzip image is damaged/, /publisher's checksum/],
  twice: ["gzip -1 -c raw | gzip -c > OUT", /the gzip image is compressed twice/, /unpack it first/],
};

const sources: Record<string, [said: RegExp, next: RegExp]> = {
  "": [/the source is empty/, /name a file, or an address/],
  "file:disk.raw": [/neither an address nor a path/, /file:\/\/…/],
  "https:/example.org/disk.raw": [/neither an address nor a path/, /https:\/\/…/],
  "ftp://example.org/disk.raw": [/not ftp:\/\//, /ullage help sources/],
  "file://example.org/disk.raw": [/names no file on this machine/, /file:\/\/\/path/],
  "s3://bucket": [/it names no object/, /s3:\/\/bucket\/key/],
  "oss://bucket/": [/it names no object/, /oss:\/\/bucket\/key/],
  "oci://registry.example.org": [/no registry and repository/, /oci:\/\/host\/repository:tag/],
  "nbd:///disk": [/names no host/, /nbd:\/\/HOST/],
};

void test(
  "`ullage run` refuses what it can't make a disk from, and says what to do instead",
  { timeout: 150_000 },
  async (t) => {
    if (!requireTool(t, "qemu-img", "xz")) return;
    const directory = await temporaryDirectory(t);
    await makeSmallDisk(join(directory, "raw"));
    await writeFile(join(directory, "data"), "");
    const refuse = async (source: string): Promise<Result> =>
      run(["run", source, "--nbd", `unix:${directory}/nbd.sock`], { cwd: directory });
    const demand = ({ code, stderr }: Result, said: RegExp, next: RegExp): void => {
      const [what = "", hint = ""] = stderr.replaceAll(directory, "").split("\n");
      assert.equal(code, 1, stderr);
      assert.match(what, said);
      assert.match(hint, next, stderr);
    };
    const waiting: (() => Promise<unknown>)[] = [
      ...Object.entries(images).map(
        ([name, [command, said, next]]) =>
          async () =>
            t.test(name, async () => {
              await promisify(execFile)("sh", ["-c", command.replaceAll("OUT", name)], {
                cwd: directory,
                timeout: 60_000,
              });
              demand(await refuse(name), new RegExp(said.source.replace("OUT", name)), next);
            }),
      ),
      ...Object.entries(sources).map(
        ([source, [said, next]]) =>
          async () =>
            t.test(`'${source}'`, async () => demand(await refuse(source), said, next)),
      ),
    ];
    const worker = async (): Promise<void> => {
      for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) await next();
    };
    await Promise.all([worker(), worker()]);
  },
);
