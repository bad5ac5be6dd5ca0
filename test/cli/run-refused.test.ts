import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { once } from "node:events";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type AddressInfo, createServer } from "node:net";
import { test, type TestContext } from "node:test";
import { promisify } from "node:util";
import { atEnd, temporaryDirectory } from "../daemon/support.ts";
import { makeSmallDisk } from "../support/run-images.ts";
import { requireTool } from "../support/tools.ts";
import { run, type Result } from "./support.ts";

/*
 * What `ullage run` does not take, README and docs/SOURCES.md say; each is refused, and told what to do instead.
 */

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
  // Its header says LUKS: making a real one measures the processor, and fails on a busy one.
  encrypted: [
    `${create("-f qcow2")} && printf '\\2' | dd of=OUT bs=1 seek=35 conv=notrunc`,
    /is encrypted/,
    /decrypt it/,
  ],
  "raw --format=vmdk": ["true", /the vmdk image is damaged: it begins like none/, /publisher's checksum/],
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
      run(["run", ...source.split(" "), "--nbd", `unix:${directory}/nbd.sock`], { cwd: directory });
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

/** Something that listens, and answers whatever comes with this. @returns its port */
async function answering(t: TestContext, answer: string): Promise<number> {
  const server = createServer((socket) => {
    socket.on("error", () => undefined);
    socket.once("data", () => socket.end(answer));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  atEnd(t, () => new Promise((resolve) => server.close(resolve)));
  return (server.address() as AddressInfo).port;
}

void test(
  "`ullage run` says what to do about servers that are not what the address says",
  { timeout: 150_000 },
  async (t) => {
    const directory = await temporaryDirectory(t);
    const http = (status: string, body: string): Promise<number> =>
      answering(t, `HTTP/1.1 ${status}\r\nContent-Length: ${body.length}\r\n\r\n${body}`);
    const page = await http("200 OK", "<!doctype html><title>log in</title>");
    const busy = await http("503 Service Unavailable", "");
    const garbage = await answering(t, "SSH-2.0-server\r\n");
    const cases: [source: string, said: RegExp, next: RegExp, env?: NodeJS.ProcessEnv][] = [
      [
        `http://127.0.0.1:${page}/disk --download --unpinned`,
        /it is a web page, not an image$/,
        /whether its server wants a login/,
      ],
      [`http://127.0.0.1:${busy}/disk`, /answered 503$/, /not now: try again later/],
      [`http://127.0.0.1:${garbage}/disk`, /sent a malformed answer: /, /see what answers there/],
      [`https://127.0.0.1:${page}/disk`, /TLS failed: what answers there speaks no TLS$/, /check the address and/],
      [
        "s3://images/disk",
        /\$AWS_ENDPOINT_URL_S3 is no address: 'elsewhere'$/,
        /https:\/\//,
        { AWS_ENDPOINT_URL_S3: "elsewhere" },
      ],
      ["oss://images/disk", /\$OSS_ENDPOINT is no address: 'ftp:\/\/x'$/, /https:\/\//, { OSS_ENDPOINT: "ftp://x" }],
    ];
    for (const [source, said, next, env = {}] of cases) {
      const { code, stderr } = await run(["run", ...source.split(" "), "--nbd", `unix:${directory}/nbd.sock`], { env });
      const [what = "", hint = ""] = stderr.split("\n");
      assert.equal(code, 1, stderr);
      assert.match(what, said);
      assert.match(hint, next, stderr);
    }
  },
);
