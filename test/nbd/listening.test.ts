import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { existsSync, lstatSync, readdirSync, writeFileSync } from "node:fs";
import net from "node:net";
import { join } from "node:path";
import test from "node:test";
import { formatListenAddress, isLocalAddress, parseListenAddress } from "../../src/export/listen-address.ts";
import { takeInheritedSockets } from "../../src/export/socket-activation.ts";
import { requireTool } from "../support/tools.ts";
import { goData, RawClient } from "./raw-client.ts";
import { MiB, run, serve, succeed, tempDir, until } from "./support.ts";

const fixture = new URL("serve-inherited.ts", import.meta.url).pathname;
const node = new URL("../../bin/node", import.meta.url).pathname;

void test("addresses are parsed strictly and format back", () => {
  for (const text of [
    "127.0.0.1:10809",
    "localhost:0",
    "0.0.0.0:65535",
    "[::1]:10809",
    "[::]:1",
    "unix:/run/x y.sock",
  ]) {
    assert.equal(formatListenAddress(parseListenAddress(text)), text);
  }
  for (const text of [
    "",
    "10809",
    ":10809",
    "host",
    "host:",
    "host:65536",
    "host:-1",
    "::1:10809",
    "[::1]",
    "[127.0.0.1]:1",
    "[::g]:1",
    "unix:",
    `unix:/${"x".repeat(107)}`,
    "unix:/a\0b",
  ]) {
    assert.throws(() => parseListenAddress(text), { code: "listen-address" }, text);
  }
  for (const [text, local] of [
    ["127.0.0.1:1", true],
    ["127.9.9.9:1", true],
    ["[::1]:1", true],
    ["[::ffff:127.0.0.1]:1", true],
    ["unix:/x", true],
    ["0.0.0.0:1", false],
    ["10.0.0.1:1", false],
    ["[::]:1", false],
  ] as const) {
    assert.equal(isLocalAddress(parseListenAddress(text)), local, text);
  }
});

void test("a unix socket is private from birth, and its file goes when the server stops", async (t) => {
  const { server, path } = await serve(t);
  assert.equal(lstatSync(path).mode & 0o7777, 0o600);
  await server.stop(100);
  assert.equal(existsSync(path), false);
});

void test("a stale socket file is replaced, a live one is an error that names it, another file is left alone", async (t) => {
  if (!requireTool(t, "python3")) return;
  const dir = tempDir(t);
  const stale = join(dir, "stale.sock");
  await succeed("python3", ["-c", `import socket; socket.socket(socket.AF_UNIX).bind("${stale}")`]);
  assert.ok(existsSync(stale));
  const { server } = await serve(t, { address: `unix:${stale}` });
  assert.equal((await RawClient.open(stale)).ended, false);
  const error = { code: "listen-in-use", message: new RegExp(stale) };
  await assert.rejects(server.listen(`unix:${stale}`), error);
  assert.equal((await RawClient.open(stale)).ended, false);
  const file = join(dir, "file");
  writeFileSync(file, "precious");
  await assert.rejects(server.listen(`unix:${file}`), { code: "listen", message: /no socket/ });
  assert.ok(existsSync(file));
  await assert.rejects(server.listen(`unix:${join(dir, "none", "x.sock")}`), { code: "listen", message: /ENOENT/ });
});

void test("TCP: port 0 is chosen and reported, IPv6 works, a port in use is an error with a hint", async (t) => {
  const { server, listening } = await serve(t, { address: "localhost:0" });
  assert.ok(listening.address.kind === "tcp" && listening.address.port > 0);
  assert.equal(listening.uri("a b"), `nbd://127.0.0.1:${listening.address.port}/a%20b`);
  const client = await RawClient.open(listening.address.port);
  assert.match(server.connections()[0].address, /^127\.0\.0\.1:\d+$/);
  client.destroy();
  await assert.rejects(server.listen(listening.address), (error: Error & { code: string; hint: string }) => {
    assert.equal(error.code, "listen-in-use");
    assert.match(error.message, new RegExp(formatListenAddress(listening.address)));
    assert.match(error.hint, /choose another/);
    return true;
  });
  await assert.rejects(server.listen("192.0.2.1:0"), { code: "listen", message: /EADDRNOTAVAIL/ });
  await assert.rejects(server.listen("no.such.host.invalid:0"), { code: "listen", message: /unknown/ });
  const six = await server.listen("[::1]:0");
  assert.ok(six.address.kind === "tcp" && six.address.host === "::1");
  const socket = net.connect(six.address.port, "::1");
  await new Promise((resolve) => socket.once("data", resolve));
  socket.destroy();
});

void test("a listener that is closed accepts no more, while connections and other listeners live on", async (t) => {
  const { server, path, listening } = await serve(t);
  const other = await server.listen("127.0.0.1:0");
  assert.ok(other.address.kind === "tcp");
  const client = await RawClient.open(path);
  await listening.close();
  await assert.rejects(RawClient.connect(path));
  client.request(0, { length: 512 });
  assert.equal((await client.reply()).error, 0);
  (await RawClient.open(other.address.port)).destroy();
});

void test("connections beyond the maximum are told why, others are not disturbed", async (t) => {
  const { path, server } = await serve(t, { limits: { maxConnections: 3 } });
  const clients = await Promise.all([1, 2, 3].map(() => RawClient.open(path)));
  const refused = await RawClient.connect(path);
  await refused.greet();
  refused.option(7, goData("disk"));
  const [reply] = await refused.optionReplies();
  assert.equal(reply.type, 0x80000002);
  assert.match(reply.data.toString(), /too many connections: the limit is 3/);
  clients[0].destroy();
  await until(() => server.connections().length === 2, "a place is free");
  (await RawClient.open(path)).destroy();
  clients[1].request(0, { length: 512 });
  assert.equal((await clients[1].reply()).error, 0);
});

void test("a process out of descriptors backs off, says so once, and accepts when there are some again", async (t) => {
  const dir = tempDir(t);
  const path = join(dir, "nbd.sock");
  const child = spawn("sh", ["-c", `ulimit -n 60; exec sh "${node}" "${fixture}" "unix:${path}"`], {
    stdio: ["ignore", "ignore", "pipe"],
  });
  t.after(() => child.kill("SIGKILL"));
  let stderr = "";
  child.stderr.on("data", (bytes: Buffer) => (stderr += bytes.toString()));
  await until(() => existsSync(path), "the server listens");
  const sockets: net.Socket[] = [];
  await until(() => {
    sockets.push(net.connect(path).on("error", () => undefined));
    return stderr.includes("EMFILE");
  }, "the server is out of descriptors");
  for (const socket of sockets) socket.destroy();
  const client = await RawClient.open(path);
  client.destroy();
  assert.equal(stderr.split("EMFILE").length - 1, 1);
});

void test("socket activation: libnbd starts the server with a socket and reaches it", async (t) => {
  if (!requireTool(t, "nbdinfo")) return;
  const printed = await succeed("nbdinfo", ["--size", "--", "[", "sh", node, fixture, "]"]);
  assert.equal(printed, `${16 * MiB}\n`);
});

void test("inherited sockets are taken only by the process they are for, and the variables do not go on", () => {
  const mine = { LISTEN_FDS: "2", LISTEN_PID: String(process.pid), LISTEN_FDNAMES: "nbd:api", OTHER: "x" };
  assert.deepEqual(takeInheritedSockets(mine), [
    { fd: 3, name: "nbd" },
    { fd: 4, name: "api" },
  ]);
  assert.deepEqual(mine, { OTHER: "x" });
  assert.deepEqual(takeInheritedSockets({ LISTEN_FDS: "1", LISTEN_PID: "1" }), []);
  assert.deepEqual(takeInheritedSockets({ LISTEN_PID: String(process.pid) }), []);
  assert.deepEqual(takeInheritedSockets({ LISTEN_FDS: "x", LISTEN_PID: String(process.pid) }), []);
});

void test("a descriptor that does not listen is not adopted", async (t) => {
  const { server } = await serve(t);
  assert.throws(() => server.adopt(0), { code: "listen" });
});

void test("a process that ends without closing its listeners is not held up by the accepting thread", async (t) => {
  const path = join(tempDir(t), "nbd.sock");
  const { code } = await run("sh", [node, fixture, `unix:${path}`, "exit"], 20_000);
  assert.equal(code, 7);
});

void test("the accepting thread ends with the last listener, starts again with the next, and leaks no descriptors", async (t) => {
  const { server, listening } = await serve(t);
  await listening.close();
  const descriptors = (): number => readdirSync("/proc/self/fd").length;
  const before = descriptors();
  for (let i = 0; i < 3; i++) {
    const again = await server.listen("127.0.0.1:0");
    const { address } = again;
    assert.ok(address.kind === "tcp");
    (await RawClient.open(address.port)).destroy();
    await again.close();
  }
  await until(() => descriptors() <= before, "every descriptor is closed");
});
