import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { test } from "node:test";
import type { HealthView } from "../../src/daemon/views.ts";
import { atEnd, temporaryDirectory } from "../daemon/support.ts";
import { requireTool } from "../support/tools.ts";
import { launch, run } from "./support.ts";

void test("serve takes its settings from the file, and flags override them", async (t) => {
  const directory = await temporaryDirectory(t);
  const file = join(directory, "ullage.toml");
  await writeFile(
    file,
    'data = "data"\napi = "unix:api.sock"\nnbd = ["unix:one.sock"]\n[log]\nformat = "json"\nlevel = "error"\n',
  );
  const daemon = await launch<HealthView>(t, ["serve", "--config", file, "--log-level", "info"]);
  const { dataDirectory, listeners } = daemon.announced;
  assert.equal(dataDirectory, join(directory, "data"));
  assert.deepEqual(
    listeners.map(({ address }) => address),
    [`unix:${directory}/api.sock`, `unix:${directory}/data/blobd.sock`, `unix:${directory}/one.sock`],
  );
  const { stderr } = await daemon.stop();
  assert.equal((JSON.parse(stderr.trimEnd().split("\n").at(-1)!) as { level: string }).level, "info");
  const other = await launch<HealthView>(t, ["serve", "--config", file, "--nbd", `unix:${directory}/two.sock`]);
  assert.equal(other.announced.listeners.at(-1)!.address, `unix:${directory}/two.sock`);
});

void test("socketMode and socketGroup hold for all sockets", async (t) => {
  if (!requireTool(t, "root")) return;
  const directory = await temporaryDirectory(t);
  const file = join(directory, "ullage.toml");
  await writeFile(
    file,
    'data = "data"\napi = "unix:api.sock"\nnbd = "unix:nbd.sock"\nsocketMode = "0660"\nsocketGroup = "daemon"\n',
  );
  const daemon = await launch<HealthView>(t, ["serve", "--config", file]);
  for (const { address } of daemon.announced.listeners) {
    const { mode, gid, uid } = await stat(address.slice("unix:".length));
    assert.deepEqual([mode & 0o7777, gid, uid], [0o660, 1, 0], address);
  }
});

void test("a wrong file stops the start, with its line; config check lists all that is wrong", async (t) => {
  const directory = await temporaryDirectory(t);
  const file = join(directory, "ullage.toml");
  await writeFile(file, 'data = "data"\nsocketmode = "0660"\nnbd = 10809\n');
  const refused = await run(["serve", "--config", file]);
  assert.equal(refused.code, 1);
  assert.match(
    refused.stderr,
    new RegExp(`^ullage: ${file}:2: there is no key 'socketmode'\n +did you mean 'socketMode'`),
  );
  await assert.rejects(stat(join(directory, "data")), "nothing was made");
  const checked = await run(["config", "check", file]);
  assert.equal(checked.code, 1);
  assert.equal(checked.stdout.trimEnd().split("\n").length, 2);
  const json = JSON.parse((await run(["config", "check", file, "--json"])).stdout) as { problems: { line: number }[] };
  assert.deepEqual(
    json.problems.map(({ line }) => line),
    [2, 3],
  );
  await writeFile(file, 'data = "data"\n');
  const good = await run(["config", "check", file]);
  assert.deepEqual([good.code, good.stdout], [0, `${file} is good\n`]);
});

const listener = `
import socket, sys
receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
receiver.bind(sys.argv[1].replace("@", chr(0)))
print("bound", flush=True)
for _ in range(2): print(receiver.recv(100).decode(), flush=True)
`;

void test("the service manager is told when everything is open and when a stop begins", async (t) => {
  if (!requireTool(t, "python3")) return;
  const directory = await temporaryDirectory(t);
  for (const path of [join(directory, "notify"), `@${directory}/abstract`]) {
    const receiver = spawn("python3", ["-c", listener, path], { stdio: ["ignore", "pipe", "inherit"] });
    atEnd(t, async () => void receiver.kill("SIGKILL"));
    const lines = createInterface({ input: receiver.stdout })[Symbol.asyncIterator]();
    const said = async (): Promise<string> => (await lines.next()).value as string;
    assert.equal(await said(), "bound");
    const listeners = ["--api", `unix:${directory}/api.sock`, "--nbd", `unix:${directory}/nbd.sock`];
    const args = ["serve", "--data", join(directory, "data"), ...listeners];
    const daemon = await launch(t, args, { env: { NOTIFY_SOCKET: path } });
    assert.equal(await said(), "READY=1");
    await daemon.stop();
    assert.equal(await said(), "STOPPING=1");
  }
});
