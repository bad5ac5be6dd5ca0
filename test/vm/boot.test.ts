import assert from "node:assert/strict";
import { type ChildProcess, execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { type AddressInfo, connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { debianImage } from "../support/debian-image.ts";
import { startHttpSource } from "../support/http-source.ts";
import { requireTool } from "../support/tools.ts";
import { bootGuest } from "./guest.ts";

const ullage = new URL("../../bin/ullage", import.meta.url).pathname;
const bootTimeoutMs = 5 * 60_000;
const startTimeoutMs = 30_000;
const mebibyte = 2 ** 20;

void test("a Debian guest boots from an HTTP image of which little is fetched, and its kernel uses a volume over NBD", async (t) => {
  const tools = ["root", "mmdebstrap", "mkfs.ext4", "e2fsck", "qemu-system-x86_64", "nbdcopy"] as const;
  if (!requireTool(t, ...tools)) return;
  const debian = await debianImage();
  await using source = await startHttpSource({ content: debian.image });
  const folder = await mkdtemp(join(tmpdir(), "ullage-vm-"));
  const port = await freePort();
  const { nbdSocket, command } = await startDaemon(t, folder, port);
  await command("volume", "create", "boot", "--from", source.url, "--hydrate", "off");
  await command("volume", "create", "data", "--size", "256M");

  const console = await bootGuest(debian, {
    rootDisk: `nbd+unix:///boot?socket=${nbdSocket}`,
    consoleFile: join(folder, "console"),
    volume: `10.0.2.2:${port}:data`, // QEMU's user network: this host's 127.0.0.1
    timeoutMs: bootTimeoutMs,
  });
  assert.match(console, /^BOOT-OK /m);
  assert.match(console, /^VOLUME-OK/m, console);
  assert.match(console, /^ROOT-WRITTEN/m, console);

  const { fetchedBytes } = JSON.parse(await command("volume", "show", "boot", "--json")) as { fetchedBytes: number };
  t.diagnostic(`fetched ${(fetchedBytes / mebibyte).toFixed(1)} of ${debian.size / mebibyte} MiB to boot`);
  // The boot reads about 37 MiB; fetched in whole units and with readahead that is more, but never most of the image.
  assert.ok(fetchedBytes > 16 * mebibyte, `${fetchedBytes} bytes fetched: a boot reads more than that`);
  assert.ok(fetchedBytes < debian.size / 4, `${fetchedBytes} of ${debian.size} bytes fetched: a boot needs far less`);
  // What is shown must be what the source was asked for, up to requests that were repeated.
  assert.ok(source.bytesServed >= fetchedBytes, `shows ${fetchedBytes} bytes, the source gave ${source.bytesServed}`);
  assert.ok(
    source.bytesServed < fetchedBytes * 1.1,
    `shows ${fetchedBytes} bytes, the source gave ${source.bytesServed}`,
  );

  for (const volume of ["boot", "data"]) {
    const copy = join(folder, `${volume}.raw`);
    await promisify(execFile)("nbdcopy", [`nbd+unix:///${volume}?socket=${nbdSocket}`, copy]);
    await promisify(execFile)("e2fsck", ["-f", "-n", copy]); // exit code 0: clean
  }
});

/** Starts `ullage serve` on unix sockets and one TCP port. At the end of the test it stops, cleanly, and `folder` goes. */
async function startDaemon(t: TestContext, folder: string, port: number) {
  const api = `unix:${join(folder, "api.sock")}`;
  const nbdSocket = join(folder, "nbd.sock");
  const listen = ["--api", api, "--nbd", `127.0.0.1:${port}`, `unix:${nbdSocket}`];
  const daemon = spawn(ullage, ["serve", "--data", join(folder, "data"), ...listen], {
    stdio: ["ignore", "ignore", "inherit"],
  });
  // One hook for both: hooks run in the order in which they were added, and the daemon needs its folder to the end.
  t.after(async () => {
    if (daemon.exitCode === null && daemon.signalCode === null) {
      daemon.kill("SIGTERM");
      await once(daemon, "close");
    }
    await rm(folder, { recursive: true });
    assert.equal(daemon.exitCode, 0, "the daemon did not stop cleanly");
  });
  await untilAccepts(nbdSocket, daemon);
  const command = async (...args: string[]): Promise<string> => {
    const { stdout } = await promisify(execFile)(ullage, [...args, "--api", api]);
    return stdout;
  };
  return { nbdSocket, command };
}

async function untilAccepts(socket: string, daemon: ChildProcess): Promise<void> {
  const deadline = Date.now() + startTimeoutMs;
  for (;;) {
    const probe = connect(socket);
    const accepted = await once(probe, "connect").then(
      () => true,
      () => false,
    );
    probe.destroy();
    if (accepted) return;
    if (daemon.exitCode !== null) throw new Error(`the daemon ended with ${daemon.exitCode} before it listened`);
    if (Date.now() > deadline) throw new Error(`nothing listens on ${socket} after ${startTimeoutMs} ms`);
    await sleep(20);
  }
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return port;
}
