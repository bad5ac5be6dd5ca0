import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import type { SourceError } from "../../src/base/errors.ts";
import { atEnd, temporaryDirectory } from "../daemon/support.ts";
import { startNbdkit } from "../support/nbd-source.ts";
import { requireTool } from "../support/tools.ts";
import { failsWith, openBackend, pattern, readBytes } from "./support.ts";

const content = pattern(300_000);
const single = { attempts: 1, baseMs: 1, capMs: 1, timeLimitMs: 1000 };

void test("a file on a disk that has a bad moment is read again; a lasting one is an error that says so, and heals", async (t) => {
  if (!requireTool(t, "fuse", "root", "nbdfuse", "nbdkit", "fusermount3")) return;
  const directory = await temporaryDirectory(t);
  const [image, trigger, folder] = ["image", "trigger", "folder"].map((name) => join(directory, name));
  await writeFile(image, content);
  await mkdir(folder);
  const bad = ["error-pread=EIO", "error-pread-rate=100%", `error-pread-file=${trigger}`];
  const server = await startNbdkit(t, "-r", "--filter=error", "file", image, ...bad);
  const path = join(folder, "disk");
  const mounted = spawn("nbdfuse", ["-r", path, server.uri()], { stdio: "ignore" });
  atEnd(t, async () => {
    const ended = once(mounted, "exit");
    execFileSync("fusermount3", ["-u", folder]);
    await ended;
  });
  for (let n = 0; !existsSync(path); n++) {
    assert.ok(n < 500, "nbdfuse does not come up");
    await sleep(20);
  }
  const impatient = openBackend(path, { retry: { foreground: single } });
  const backend = openBackend(path);
  const { identity } = await backend.probe(1);
  await writeFile(trigger, "");
  const failure = await failsWith("source-io", readBytes(impatient, identity, 4096, 1000));
  assert.equal(failure.transient, true);
  assert.match(failure.message, /disk cannot be read \(EIO\)$/);
  const retried = Promise.withResolvers<SourceError>();
  const reading = readBytes(backend, identity, 4096, 1000, { onRetry: retried.resolve });
  await retried.promise;
  await rm(trigger);
  assert.deepEqual(await reading, content.subarray(4096, 5096));
  assert.deepEqual(await readBytes(impatient, identity, 4096, 1000), content.subarray(4096, 5096));
  await impatient.close();
  await backend.close();
});
