import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { ExtentState } from "../../src/export/block-device.ts";
import { MemoryDevice } from "../support/memory-device.ts";
import { requireTool } from "../support/tools.ts";
import { MiB, nbdsh, oneExport, run, serve, succeed, tempDir } from "./support.ts";

interface NbdInfo {
  protocol: string;
  structured: boolean;
  exports: (Record<string, unknown> & { contexts: string[] })[];
}

void test("nbdinfo --json shows size, sizes of blocks, flags and contexts of an export", async (t) => {
  if (!requireTool(t, "nbdinfo")) return;
  const { uri } = await serve(t);
  const info = JSON.parse(await succeed("nbdinfo", ["--json", uri])) as NbdInfo;
  assert.equal(info.protocol, "newstyle-fixed");
  assert.equal(info.structured, true);
  const [disk] = info.exports;
  assert.deepEqual(disk.contexts, ["base:allocation", "ullage:hydration"]);
  assert.deepEqual(
    {
      name: disk["export-name"],
      description: disk["description"],
      size: disk["export-size"],
      readOnly: disk["is_read_only"],
      rotational: disk["is_rotational"],
      minimum: disk["block_size_minimum"],
      preferred: disk["block_size_preferred"],
      maximum: disk["block_size_maximum"],
    },
    {
      name: "disk",
      description: "a disk of memory",
      size: 16 * MiB,
      readOnly: false,
      rotational: false,
      minimum: 1,
      preferred: 4096,
      maximum: 32 * MiB,
    },
  );
});

void test("nbdinfo --can finds every flag on a writable export", async (t) => {
  if (!requireTool(t, "nbdinfo")) return;
  const { uri } = await serve(t);
  for (const flag of ["cache", "df", "fast-zero", "flush", "fua", "multi-conn", "trim", "zero", "connect"]) {
    assert.equal((await run("nbdinfo", ["--can", flag, uri])).code, 0, flag);
  }
  // 2: the answer is no
  assert.equal((await run("nbdinfo", ["--is", "rotational", uri])).code, 2);
  assert.equal((await run("nbdinfo", ["--is", "read-only", uri])).code, 2);
});

void test("a read-only export says so, offers nothing that writes, and refuses writes with EPERM", async (t) => {
  if (!requireTool(t, "nbdinfo", "nbdsh")) return;
  const device = new MemoryDevice({ size: MiB });
  const { uri } = await serve(t, { device, exports: oneExport(device, true) });
  assert.equal((await run("nbdinfo", ["--is", "read-only", uri])).code, 0);
  for (const flag of ["trim", "zero", "fast-zero", "write"]) {
    assert.equal((await run("nbdinfo", ["--can", flag, uri])).code, 2, flag);
  }
  const printed = await nbdsh(`
h.set_strict_mode(0)
h.connect_uri("${uri}")
for what in [lambda: h.pwrite(b"x"*512, 0), lambda: h.trim(512, 0), lambda: h.zero(512, 0)]:
    try:
        what()
    except nbd.Error as error:
        print(error.errno)
print(h.pread(3, 0))
`);
  assert.equal(printed, "EPERM\nEPERM\nEPERM\nbytearray(b'\\x00\\x00\\x00')\n");
});

void test("nbdinfo --list names every export, --size and an unknown name answer", async (t) => {
  if (!requireTool(t, "nbdinfo")) return;
  const device = new MemoryDevice({ size: MiB });
  const { listening } = await serve(t, {
    device,
    exports: {
      list: () => [{ name: "a" }, { name: "größer", description: "zwei" }],
      lookup: async (name) =>
        name === "a" || name === "größer"
          ? { kind: "device", name, device, readOnly: false }
          : { kind: "none", reason: `no export "${name}", there are a and größer` },
    },
  });
  const listed = JSON.parse(await succeed("nbdinfo", ["--list", "--json", listening.uri("")])) as NbdInfo;
  assert.deepEqual(
    listed.exports.map((entry) => [entry["export-name"], entry["description"]]),
    [
      ["a", undefined],
      ["größer", "zwei"],
    ],
  );
  assert.equal(await succeed("nbdinfo", ["--size", listening.uri("größer")]), `${MiB}\n`);
  const unknown = await run("nbdinfo", [listening.uri("b")]);
  assert.notEqual(unknown.code, 0);
  assert.match(unknown.stderr, /server replied with error to opt_go|No such file|not available|unknown/i);
});

void test("nbdinfo --map shows both contexts, and asking fetches nothing", async (t) => {
  if (!requireTool(t, "nbdinfo")) return;
  const device = new MemoryDevice({ size: MiB });
  device.states.fill(ExtentState.local, 0, 16);
  device.states.fill(ExtentState.remote, 16, 32);
  device.states.fill(ExtentState.written, 32, 48);
  const { uri } = await serve(t, { device });
  const map = async (name: string): Promise<[number, number, number][]> =>
    (JSON.parse(await succeed("nbdinfo", ["--json", `--map=${name}`, uri])) as Record<string, number>[]).map((run_) => [
      run_["offset"],
      run_["length"],
      run_["type"],
    ]);
  assert.deepEqual(await map("ullage:hydration"), [
    [0, 65536, 0],
    [65536, 65536, 1],
    [131072, 65536, 2],
    [196608, MiB - 196608, 3],
  ]);
  assert.deepEqual(await map("base:allocation"), [
    [0, 196608, 0],
    [196608, MiB - 196608, 3],
  ]);
  assert.equal(device.counts.read + device.counts.prefetch, 0);
});

void test("nbdcopy brings a file in and out again unchanged, over several connections", async (t) => {
  if (!requireTool(t, "nbdcopy")) return;
  const { uri, device } = await serve(t, { device: new MemoryDevice({ size: 48 * MiB }) });
  const dir = tempDir(t);
  const content = randomBytes(48 * MiB);
  content.fill(0, 5 * MiB, 9 * MiB);
  writeFileSync(join(dir, "in"), content);
  await succeed("nbdcopy", ["--connections=4", "--flush", join(dir, "in"), uri]);
  assert.ok(device.data.equals(content));
  assert.ok(device.counts.flush > 0);
  await succeed("nbdcopy", ["--connections=4", uri, join(dir, "out")]);
  assert.ok(readFileSync(join(dir, "out")).equals(content));
});

for (const slow of [false, true]) {
  const how = slow ? "when nothing can be done at once" : "on the fast path";
  void test(`qemu-img converts in and out, compares and maps, ${how}`, async (t) => {
    if (!requireTool(t, "qemu-img")) return;
    const { uri, device } = await serve(t, { device: new MemoryDevice({ size: 24 * MiB }) });
    device.slow = slow;
    const dir = tempDir(t);
    const content = randomBytes(24 * MiB);
    content.fill(0, 3 * MiB, 11 * MiB);
    writeFileSync(join(dir, "in"), content);
    await succeed("qemu-img", ["convert", "-n", "-W", "-f", "raw", "-O", "raw", join(dir, "in"), uri]);
    assert.ok(device.data.equals(content));
    await succeed("qemu-img", ["compare", "-f", "raw", "-F", "raw", uri, join(dir, "in")]);
    await succeed("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", uri, join(dir, "out.qcow2")]);
    await succeed("qemu-img", ["compare", "-f", "raw", "-F", "qcow2", uri, join(dir, "out.qcow2")]);
    const map = JSON.parse(await succeed("qemu-img", ["map", "--output=json", "-f", "raw", uri])) as {
      start: number;
      length: number;
      zero: boolean;
    }[];
    assert.deepEqual(
      map.filter(({ zero }) => zero).map(({ start, length }) => [start, length]),
      [[3 * MiB, 8 * MiB]],
    );
    const info = JSON.parse(await succeed("qemu-img", ["info", "--output=json", uri])) as Record<string, unknown>;
    assert.equal(info["virtual-size"], 24 * MiB);
  });

  void test(`qemu-io patterns with write -z, discard, FUA and unaligned ranges read back, ${how}`, async (t) => {
    if (!requireTool(t, "qemu-io")) return;
    const { uri, device } = await serve(t);
    device.slow = slow;
    device.trackDurable();
    const script = [
      "write -P 0x11 0 4M",
      "write -P 0x22 513 70000",
      "read -P 0x11 0 513",
      "read -P 0x22 513 70000",
      "read -P 0x11 70513 100000",
      "write -z 1M 1M",
      "read -P 0 1M 1M",
      "write -z -u 2M 64k",
      "read -P 0 2M 64k",
      "discard 3M 512k",
      "read -P 0 3M 512k",
      "write -f -P 0x33 5M 4k",
      "read -P 0x33 5M 4k",
      "aio_write -P 0x44 8M 2M",
      "aio_write -P 0x55 10M 2M",
      "aio_flush",
      "read -P 0x44 8M 2M",
      "read -P 0x55 10M 2M",
    ];
    const printed = await succeed("qemu-io", [
      "-f",
      "raw",
      "-t",
      "none",
      ...script.flatMap((line) => ["-c", line]),
      uri,
    ]);
    assert.doesNotMatch(printed, /failed|verification/i);
    // The write with FUA was durable when it was answered, and qemu flushed the rest when it closed.
    assert.ok(device.durable!.equals(device.data));
    assert.ok(device.counts.trim > 0 && device.counts.zero > 0);
  });
}

void test("a FLUSH on one connection covers what was answered on the others", async (t) => {
  if (!requireTool(t, "nbdsh")) return;
  const { uri, device } = await serve(t);
  device.trackDurable();
  await nbdsh(`
import nbd
a = nbd.NBD(); a.connect_uri("${uri}")
b = nbd.NBD(); b.connect_uri("${uri}")
assert a.can_multi_conn()
a.pwrite(b"first", 0)
a.pwrite(b"second", 100000)
b.flush()
`);
  assert.equal(device.durable!.toString("latin1", 0, 5), "first");
  assert.equal(device.durable!.toString("latin1", 100000, 100006), "second");
});

void test("CACHE brings a range into the local cache", async (t) => {
  if (!requireTool(t, "nbdsh")) return;
  const { uri, device } = await serve(t);
  device.states.fill(ExtentState.remote);
  await nbdsh(`
h.connect_uri("${uri}")
h.cache(65536, 65536)
`);
  assert.equal(device.counts.prefetch, 1);
  assert.equal(device.counts.read, 0);
  assert.deepEqual(
    [...device.states.subarray(15, 33)].map((state) => state === ExtentState.remote),
    [true, ...Array<boolean>(16).fill(false), true],
  );
});

for (const slow of [false, true]) {
  void test(`fio verifies what two jobs on two connections wrote${slow ? ", with a slow device" : ""}`, async (t) => {
    if (!requireTool(t, "fio")) return;
    const { uri, device } = await serve(t, { device: new MemoryDevice({ size: 32 * MiB }) });
    device.slow = slow;
    const job = [
      "--ioengine=nbd",
      `--uri=${uri}`,
      "--rw=randrw",
      "--bsrange=512-256k",
      "--bs_unaligned",
      "--iodepth=16",
    ];
    const verify = ["--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--fsync=64", "--serialize_overlap=1"];
    verify.push("--verify_state_save=0"); // it would be left in the working directory
    const jobs = ["first", "second"].flatMap((name, index) => [
      `--name=${name}`,
      `--offset=${index * 16}M`,
      "--size=16M",
      ...job,
      ...verify,
    ]);
    const printed = await succeed("fio", jobs, 120_000);
    assert.match(printed, /first: .*err= 0/);
    assert.match(printed, /second: .*err= 0/);
    assert.equal(device.attached.length, 0);
  });
}
