import assert from "node:assert/strict";
import { execFile, spawn, type ChildProcess } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdir, open, readdir, readFile, stat, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { promisify } from "node:util";
import type { HealthView, VolumeView } from "../../src/daemon/views.ts";
import { atEnd, temporaryDirectory } from "../daemon/support.ts";
import { startHttpSource } from "../support/http-source.ts";
import { mountTmpfs } from "../support/mounts.ts";
import { requireTool } from "../support/tools.ts";
import { launch, launchDaemon, run, type Daemon, type Result } from "./support.ts";

const execute = promisify(execFile);
const ullage = join(import.meta.dirname, "../../bin/ullage");
const patience = { timeout: 150_000 };
const MiB = 1 << 20;

async function until(what: string, holds: () => boolean | Promise<boolean>): Promise<void> {
  for (let n = 0; n < 3000; n++) {
    if (await holds()) return;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  assert.fail(`never: ${what}`);
}

/** A file with data here and there, and holes between; its length is no multiple of a sector. */
async function sparseFile(path: string, length: number, pieces: readonly (readonly [number, number])[]): Promise<void> {
  const file = await open(path, "w");
  await file.truncate(length);
  for (const [offset, size] of pieces) await file.write(randomBytes(size), 0, size, offset);
  await file.close();
}

const allocated = async (path: string): Promise<number> => (await stat(path)).blocks * 512;

async function succeed(daemon: Daemon, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await daemon.cli(args);
  assert.equal(code, 0, stderr);
  return stdout;
}

/** A client command that goes on beside the test. */
function begin(t: TestContext, daemon: Daemon, args: string[]): { child: ChildProcess; result: Promise<Result> } {
  const child = spawn("sh", [ullage, ...args], {
    env: { ...process.env, ULLAGE_API: `unix:${daemon.dataDir}/api.sock` },
  });
  let stdout = "";
  let stderr = "";
  child.stdout.on("data", (chunk: Buffer) => (stdout += chunk.toString()));
  child.stderr.on("data", (chunk: Buffer) => (stderr += chunk.toString()));
  const result = once(child, "close").then(([code]) => ({ code: code as number | null, stdout, stderr }));
  atEnd(t, async () => {
    child.kill("SIGKILL");
    await result;
  });
  return { child, result };
}

/** A shell pipeline with `ullage` in it. */
function shell(daemon: Daemon, script: string): Promise<{ stdout: string; stderr: string }> {
  const env = { ...process.env, ULLAGE_API: `unix:${daemon.dataDir}/api.sock` };
  return execute("bash", ["-euo", "pipefail", "-c", `ullage() { sh ${ullage} "$@"; }; ${script}`], {
    env,
    timeout: 100_000,
  });
}

/** What a data directory holds beside its volumes' own files: nothing, once all is over. */
async function leftOvers(dataDir: string): Promise<string[]> {
  const found = (await readdir(join(dataDir, "maps"))).map((name) => `maps/${name}`);
  for (const id of await readdir(join(dataDir, "volumes"))) {
    const names = await readdir(join(dataDir, "volumes", id));
    found.push(...names.filter((name) => name.startsWith("snapshot")).map((name) => `volumes/${id}/${name}`));
  }
  return found;
}

void test(
  "a disk comes back byte by byte, by file and by pipe, as raw and as qcow2, and its holes stay holes",
  patience,
  async (t) => {
    if (!requireTool(t, "qemu-img", "qemu-io")) return;
    const daemon = await launchDaemon(t);
    const directory = await temporaryDirectory(t);
    const path = (name: string): string => join(directory, name);
    const length = 700 * MiB + 1000;
    await sparseFile(path("disk"), length, [
      [0, 100_000],
      [300 * MiB + 5, MiB],
      [512 * MiB - 4096, 65_536],
      [length - 100, 100],
    ]);
    const size = Math.ceil(length / 512) * 512;
    assert.match(await succeed(daemon, "volume", "import", "v", path("disk")), /v is ready: 700M, NBD export 'v'\n$/);
    await shell(daemon, `ullage volume import piped - < <(cat '${path("disk")}')`);
    await execute("truncate", ["-s", String(size), path("disk")]);
    assert.match(
      await succeed(daemon, "volume", "export", "v", path("raw")),
      /v is in .*: 700M, of which 1.2M are not zeros\n$/,
    );
    await succeed(daemon, "volume", "export", "piped", path("qcow2"), "--format", "qcow2");
    await shell(daemon, `ullage volume export v - | cmp - '${path("disk")}'`);
    await shell(daemon, `ullage volume export v - --format qcow2 > '${path("piped.qcow2")}'`);
    await execute("cmp", [path("raw"), path("disk")]);
    for (const name of ["qcow2", "piped.qcow2"]) {
      await execute("qemu-img", ["check", path(name)]);
      await execute("qemu-img", ["compare", "-f", "qcow2", "-F", "raw", path(name), path("disk")]);
      const info = JSON.parse((await execute("qemu-img", ["info", "--output=json", path(name)])).stdout) as object;
      assert.partialDeepStrictEqual(info, { format: "qcow2", "virtual-size": size, "cluster-size": 65_536 });
    }
    for (const name of ["raw", "qcow2"]) {
      assert.ok((await allocated(path(name))) < 3 * MiB, `${name} takes ${await allocated(path(name))} bytes`);
    }
    const { exclusiveBytes } = JSON.parse(
      (await execute("curl", ["-sS", "--unix-socket", join(daemon.dataDir, "api.sock"), "http://x/v1/volumes/v/space"]))
        .stdout,
    ) as { exclusiveBytes: number };
    assert.ok(exclusiveBytes < 3 * MiB, "the volume is as sparse as the file was");

    // An image that Ullage goes on with, and others.
    await succeed(daemon, "volume", "create", "again", "--from", path("qcow2"));
    await shell(daemon, `ullage volume export again - | cmp - '${path("disk")}'`);
    await succeed(daemon, "volume", "rm", "again");
    await execute("qemu-io", ["-f", "qcow2", "-c", "write -P 7 400M 1M", path("qcow2")]);
    await execute("qemu-img", ["check", path("qcow2")]);
    await until("nothing is frozen any more", async () => (await leftOvers(daemon.dataDir)).length === 0);
    assert.deepEqual((await readdir(directory)).sort(), ["disk", "piped.qcow2", "qcow2", "raw"]);
  },
);

void test("a refusal is heard, however much is still on its way", patience, async (t) => {
  const daemon = await launchDaemon(t);
  const file = join(await temporaryDirectory(t), "disk");
  await writeFile(file, Buffer.concat([Buffer.from("QFI\xfb\0\0\0\x03", "latin1"), randomBytes(24 * MiB)]));
  for (let attempt = 0; attempt < 6; attempt++) {
    const { code, stderr } = await daemon.cli(["volume", "import", "v", file]);
    assert.equal(code, 1);
    assert.match(stderr, /qcow2.*\n +make it raw first/);
  }
});

void test("a disk of a terabyte with little in it goes there and back without its zeros", patience, async (t) => {
  if (!requireTool(t, "qemu-img")) return;
  const daemon = await launchDaemon(t);
  const directory = await temporaryDirectory(t);
  const [disk, image] = [join(directory, "disk"), join(directory, "image")];
  await sparseFile(disk, 2 ** 40, [
    [2 ** 39, 5 * MiB],
    [2 ** 40 - 4096, 4096],
  ]);
  await succeed(daemon, "volume", "import", "v", disk);
  const { dataBytes } = await daemon.json<{ dataBytes: number }>(["volume", "export", "v", image, "--format", "qcow2"]);
  assert.ok(dataBytes < 6 * MiB, `${dataBytes} bytes were sent`);
  await execute("qemu-img", ["check", image]);
  await succeed(daemon, "volume", "export", "v", join(directory, "raw"));
  await execute("qemu-img", ["compare", "-f", "qcow2", "-F", "raw", image, join(directory, "raw")]);
  await execute("qemu-img", ["compare", "-f", "raw", "-F", "raw", disk, join(directory, "raw")]);
});

void test("random disks are the same as qcow2, checked and compared by qemu-img", patience, async (t) => {
  if (!requireTool(t, "qemu-img")) return;
  const daemon = await launchDaemon(t);
  const directory = await temporaryDirectory(t);
  const [disk, image] = [join(directory, "disk"), join(directory, "image")];
  // Below a cluster; around the end of an L2 table (512 MiB); more than one refcount block's worth is for the terabyte.
  const sizes = [512, 65_536, 65_536 + 512, 512 * MiB - 512, 512 * MiB, 512 * MiB + 512, 1600 * MiB + 1536];
  for (const [index, size] of sizes.entries()) {
    const pieces = Array.from({ length: 9 }, () => {
      const offset = Math.floor((randomBytes(6).readUIntBE(0, 6) / 2 ** 48) * size);
      return [offset, Math.min(size - offset, 1 + randomBytes(3).readUIntBE(0, 3) / 16) | 0] as const;
    }).filter(([, length]) => length > 0);
    await sparseFile(disk, size, pieces);
    await succeed(daemon, "volume", "import", `v${index}`, disk, "--format", "raw");
    await succeed(daemon, "volume", "export", `v${index}`, image, "--format", "qcow2", "--force");
    await execute("qemu-img", ["check", image]);
    await execute("qemu-img", ["compare", "-f", "qcow2", "-F", "raw", image, disk]);
  }
});

void test(
  "a snapshot is exported, what is remote of it is fetched, and a disk that fio writes stays one moment",
  patience,
  async (t) => {
    if (!requireTool(t, "fio", "qemu-img")) return;
    const content = randomBytes(24 * MiB);
    await using source = await startHttpSource({ content });
    const daemon = await launchDaemon(t);
    const directory = await temporaryDirectory(t);
    const [first, second] = [join(directory, "first"), join(directory, "second.qcow2")];
    await succeed(daemon, "volume", "create", "v", "--from", source.url, "--hydrate", "off", "--size", "32M");
    await succeed(daemon, "snapshot", "create", "v@s");
    const fio = spawn(
      "fio",
      [
        "--name=w",
        "--ioengine=nbd",
        `--uri=${daemon.uri("v")}`,
        "--rw=randwrite",
        "--bs=4k",
        "--size=32M",
        "--iodepth=8",
        "--time_based",
        "--runtime=1000",
      ],
      { cwd: directory, stdio: "ignore" },
    );
    atEnd(t, async () => {
      fio.kill("SIGKILL");
      if (fio.exitCode === null && fio.signalCode === null) await once(fio, "close");
    });
    await until("fio writes", async () => (await daemon.json<VolumeView>(["volume", "show", "v"])).writtenBytes > 0);
    await succeed(daemon, "volume", "export", "v@s", first);
    assert.ok((await readFile(first)).equals(Buffer.concat([content, Buffer.alloc(8 * MiB)])));
    await succeed(daemon, "volume", "export", "v", second, "--format", "qcow2");
    await execute("qemu-img", ["check", second]);
    assert.equal(fio.exitCode, null, "it wrote all the time");
    await until("only what v@s needs is left", async () => (await leftOvers(daemon.dataDir)).length === 2);
  },
);

void test("nothing is overwritten unless --force, and what is used wrongly is said", patience, async (t) => {
  const daemon = await launchDaemon(t);
  const directory = await temporaryDirectory(t);
  const file = join(directory, "file");
  await succeed(daemon, "volume", "create", "v", "--size", "1M");
  await writeFile(file, "mine");
  const fails = async (code: number, pattern: RegExp, ...args: string[]): Promise<void> => {
    const result = await daemon.cli(args);
    assert.match(result.stderr, pattern);
    assert.deepEqual([result.code, result.stdout], [code, ""]);
  };
  await fails(1, /is there already\n +--force replaces it/, "volume", "export", "v", file);
  assert.equal(await readFile(file, "utf8"), "mine");
  await symlink(file, join(directory, "link"));
  await mkdir(join(directory, "folder"));
  for (const name of ["link", "folder"])
    await fails(1, /no file\n/, "volume", "export", "v", join(directory, name), "--force");
  await fails(1, /there is no volume 'w'/, "volume", "export", "w", join(directory, "x"));
  await fails(1, /has no snapshot 's'/, "volume", "export", "v@s", join(directory, "x"));
  await fails(
    1,
    /can't write .*: there is no directory .*none\n +mkdir -p/,
    "volume",
    "export",
    "v",
    join(directory, "none/x"),
  );
  await fails(2, /names no snapshot/, "volume", "export", "v@", join(directory, "x"));
  await fails(2, /no room for --json/, "volume", "export", "v", "-", "--json");
  await fails(2, /Allowed choices are raw, qcow2/, "volume", "export", "v", "x", "--format", "vmdk");
  await fails(1, /there is a volume 'v' already/, "volume", "import", "v", file);
  await fails(1, /can't read .*none: ENOENT/, "volume", "import", "w", join(directory, "none"));
  await fails(1, /it is a directory/, "volume", "import", "w", directory);
  await fails(1, /0 bytes make no disk/, "volume", "import", "w", "/dev/null");
  await succeed(daemon, "volume", "export", "v", file, "--force");
  assert.equal((await stat(file)).size, MiB);
  assert.deepEqual((await readdir(directory)).sort(), ["file", "folder", "link"]);
  assert.equal((await daemon.json<{ volumes: object[] }>(["volume", "ls"])).volumes.length, 1);
});

void test("Ctrl-C in the middle of an export leaves no file and nothing in the daemon", patience, async (t) => {
  await using source = await startHttpSource({ content: randomBytes(8 * MiB) });
  source.onRequest = ({ start }) => (start > 4 * MiB ? { kind: "stall" } : undefined);
  const daemon = await launchDaemon(t);
  const directory = await temporaryDirectory(t);
  await succeed(daemon, "volume", "create", "v", "--from", source.url, "--hydrate", "off");
  const { child, result } = begin(t, daemon, ["volume", "export", "v", join(directory, "file")]);
  const partial = async (): Promise<number> => {
    const [name] = await readdir(directory);
    return name === undefined ? 0 : allocated(join(directory, name));
  };
  await until("some of it is here", async () => (await partial()) > MiB);
  assert.match((await readdir(directory))[0], /^\.file\.[0-9a-f]{8}\.part$/);
  child.kill("SIGINT");
  const { code, stderr } = await result;
  assert.deepEqual([code, stderr], [1, `ullage: cancelled: nothing is left of '${join(directory, "file")}'\n`]);
  assert.deepEqual(await readdir(directory), []);
  await source.close(); // what stalls would keep the last read
  await until("it is not frozen any more", async () => (await leftOvers(daemon.dataDir)).length === 0);
});

void test("Ctrl-C in the middle of an import is obeyed when nothing is left", patience, async (t) => {
  const daemon = await launchDaemon(t);
  const { child, result } = begin(t, daemon, ["volume", "import", "v", "-"]);
  child.stdin!.on("error", () => undefined); // it may end before it has taken all of it
  child.stdin!.write(randomBytes(3 * MiB));
  await until(
    "it is being made",
    async () => (await daemon.json<{ volumes: object[] }>(["volume", "ls"])).volumes.length === 1,
  );
  const show = await daemon.json<VolumeView>(["volume", "show", "v"]);
  assert.equal(show.state, "creating");
  const early = await daemon.cli(["volume", "export", "v", "-"]);
  assert.match(early.stderr, /still creating/);
  child.kill("SIGINT");
  const { code, stderr } = await result; // how far it was may be told before
  assert.deepEqual({ code, stderr }, { code: 1, stderr: "ullage: cancelled: nothing is left of 'v'\n" });
  assert.deepEqual((await daemon.json<{ volumes: object[] }>(["volume", "ls"])).volumes, []);
  assert.deepEqual(await readdir(join(daemon.dataDir, "layers")), []);
});

for (const victim of ["client", "daemon"] as const) {
  void test(`a ${victim} that is killed in the middle of an import leaves no volume`, patience, async (t) => {
    const daemon = await launchDaemon(t);
    const { child, result } = begin(t, daemon, ["volume", "import", "v", "-"]);
    child.stdin!.on("error", () => undefined);
    child.stdin!.write(randomBytes(3 * MiB));
    await until("some of it is there", async () => {
      const { volumes } = await daemon.json<{ volumes: VolumeView[] }>(["volume", "ls"]);
      return volumes.some(({ fetchedBytes }) => fetchedBytes >= MiB);
    });
    if (victim === "client") {
      child.kill("SIGKILL");
      await until(
        "it is gone",
        async () => (await daemon.json<{ volumes: object[] }>(["volume", "ls"])).volumes.length === 0,
      );
      await until("its files, too", async () => (await readdir(join(daemon.dataDir, "layers"))).length === 0);
      return;
    }
    await daemon.stop("SIGKILL");
    child.stdin!.end(randomBytes(3 * MiB));
    const { code, stderr } = await result;
    assert.equal(code, 1);
    assert.match(stderr, /gave no answer/);
    assert.equal((await readdir(join(daemon.dataDir, "layers"))).length, 1, "what the next start finds");
    const again = await launchDaemon(t, daemon.dataDir);
    assert.deepEqual((await again.json<{ volumes: object[] }>(["volume", "ls"])).volumes, []);
    for (const name of ["layers", "volumes", "maps"])
      assert.deepEqual(await readdir(join(again.dataDir, name)), [], name);
    await succeed(again, "volume", "create", "v", "--size", "1M");
  });
}

void test(
  "a daemon that is killed in the middle of an export is noticed, and the next one thaws the volume",
  patience,
  async (t) => {
    await using source = await startHttpSource({ content: randomBytes(8 * MiB) });
    source.onRequest = ({ start }) => (start > 4 * MiB ? { kind: "stall" } : undefined);
    const daemon = await launchDaemon(t);
    const directory = await temporaryDirectory(t);
    await succeed(daemon, "volume", "create", "v", "--from", source.url, "--hydrate", "off");
    const { result } = begin(t, daemon, ["volume", "export", "v", join(directory, "file"), "--format", "qcow2"]);
    await until("it is read", async () => (await readdir(directory)).length === 1);
    const frozen = async (): Promise<boolean> =>
      (await leftOvers(daemon.dataDir)).some((name) => !name.endsWith(".tmp"));
    await until("it is frozen", frozen); // half a description goes with the next opening
    await daemon.stop("SIGKILL");
    const { code, stderr } = await result;
    assert.equal(code, 1);
    assert.match(stderr, /broke the transfer off|gave no answer/);
    assert.deepEqual(await readdir(directory), []);
    const again = await launchDaemon(t, daemon.dataDir);
    assert.deepEqual(await leftOvers(daemon.dataDir), []);
    assert.deepEqual((await again.json<{ snapshots: object[] }>(["snapshot", "ls"])).snapshots, []);
  },
);

void test("a source that is away ends an export with its reason, and leaves no file", patience, async (t) => {
  await using source = await startHttpSource({ content: randomBytes(8 * MiB) });
  const daemon = await launchDaemon(t);
  const directory = await temporaryDirectory(t);
  await succeed(daemon, "volume", "create", "v", "--from", source.url, "--hydrate", "off");
  source.onRequest = ({ start }) => (start > 4 * MiB ? { kind: "status", status: 404 } : undefined);
  for (const format of ["raw", "qcow2"]) {
    const { code, stderr } = await daemon.cli(["volume", "export", "v", join(directory, "file"), "--format", format]);
    assert.equal(code, 1);
    assert.match(stderr, /^ullage: .*(404|not there|no such)/i);
    assert.deepEqual(await readdir(directory), []);
  }
});

void test("a full disk ends an export, and an import, and leaves nothing", patience, async (t) => {
  if (!requireTool(t, "root", "mount")) return;
  const small = mountTmpfs(t, 8 * MiB);
  const daemon = await launchDaemon(t);
  const directory = await temporaryDirectory(t);
  const file = join(directory, "file");
  await writeFile(file, randomBytes(24 * MiB));
  await succeed(daemon, "volume", "import", "v", file);
  const exported = await daemon.cli(["volume", "export", "v", join(small, "copy")]);
  assert.equal(exported.code, 1);
  assert.match(exported.stderr, /can't write .*copy: ENOSPC/);
  assert.deepEqual(await readdir(small), []);
  const cramped = await launchDaemon(t, join(mountTmpfs(t, 16 * MiB), "data"), ["--unsafe-file-system"]);
  const imported = await cramped.cli(["volume", "import", "v", file]);
  assert.equal(imported.code, 1);
  assert.match(imported.stderr, /ENOSPC|no space/i);
  assert.deepEqual(await readdir(join(cramped.dataDir, "layers")), []);
  assert.deepEqual((await cramped.json<{ volumes: object[] }>(["volume", "ls"])).volumes, []);
  await succeed(cramped, "volume", "create", "v", "--size", "1M");
});

void test(
  "over TCP a token of scope read exports and does not import; one of scope write does both",
  patience,
  async (t) => {
    const directory = await temporaryDirectory(t);
    const socket = `unix:${directory}/api.sock`;
    const listen = ["--nbd", `unix:${directory}/nbd.sock`, "--api", "127.0.0.1:0", socket];
    const { announced } = await launch<HealthView>(t, ["serve", "--data", join(directory, "data"), ...listen]);
    const { address } = announced.listeners[0];
    const file = join(directory, "file");
    await writeFile(file, randomBytes(20 * MiB));
    const refused = await run(["volume", "import", "v", file, "--api", address], {
      env: { ULLAGE_TOKEN: await tokenOf(socket, "looker", "read") },
    });
    assert.equal(refused.code, 1);
    assert.match(refused.stderr, /^ullage: this takes a token with scope write; this one has scope read\n/);
    const made = await run(["volume", "import", "v", file, "--api", address], {
      env: { ULLAGE_TOKEN: await tokenOf(socket, "writer", "write") },
    });
    assert.equal(made.code, 0, made.stderr);
    const copy = join(directory, "copy");
    const exported = await run(["volume", "export", "v", copy, "--api", address], {
      env: { ULLAGE_TOKEN: await tokenOf(socket, "reader", "read") },
    });
    assert.equal(exported.code, 0, exported.stderr);
    assert.ok((await readFile(copy)).equals(await readFile(file)));
  },
);

async function tokenOf(api: string, name: string, scope: string): Promise<string> {
  const { stdout } = await run(["token", "create", name, "--scope", scope, "--json", "--api", api]);
  return (JSON.parse(stdout) as { secret: string }).secret;
}

void test(
  "foreign formats are refused by name with what to do, unless their bytes are wanted as they are",
  patience,
  async (t) => {
    if (!requireTool(t, "qemu-img")) return;
    const daemon = await launchDaemon(t);
    const directory = await temporaryDirectory(t);
    for (const format of ["qcow2", "vmdk", "vdi", "vhdx"]) {
      const image = join(directory, format);
      await execute("qemu-img", ["create", "-q", "-f", format, image, "10M"]);
      const refused = await daemon.cli(["volume", "import", format, image]);
      assert.equal(refused.code, 1);
      assert.match(
        refused.stderr,
        new RegExp(`^ullage: (this is a|the image is) ${format}.*\n +make it raw first \\(qemu-img convert`),
      );
      await succeed(daemon, "volume", "import", format, image, "--format", "raw");
      const back = join(directory, `${format}.back`);
      await succeed(daemon, "volume", "export", format, back);
      const original = await readFile(image);
      assert.ok((await readFile(back)).subarray(0, original.length).equals(original), format);
    }
  },
);
