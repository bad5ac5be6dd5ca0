import assert from "node:assert/strict";
import { once } from "node:events";
import { readFileSync, readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { temporaryDirectory } from "../daemon/support.ts";
import { makeDisk, run as runTool } from "../image/support.ts";
import { startHttpSource } from "../support/http-source.ts";
import { requireTool } from "../support/tools.ts";
import { launch, run } from "./support.ts";

const bytesOf = (path: string): number => statSync(path, { throwIfNoEntry: false })?.blocks ?? 0;

for (const [format, pack] of [
  ["gzip", 'gzip -c "$0" > "$1"'],
  ["zstd", 'zstd -q "$0" -o "$1"'],
  ["xz", 'xz -0 -T1 -c "$0" > "$1"'],
  ["gzip+qcow2", 'qemu-img convert -f raw -O qcow2 "$0" "$1.qcow2" && gzip -c "$1.qcow2" > "$1"'],
]) {
  void test(`kill -9 while an image is unpacked (${format}) leaves nothing behind the next start, and the next attempt makes the disk`, async (t) => {
    if (!requireTool(t, "qemu-img", "xz", "zstd")) return;
    const dir = await temporaryDirectory(t);
    const [raw, image, back, data] = ["raw", "image", "back", "data"].map((name) => join(dir, name));
    makeDisk(raw, 24 * 1024 * 1024);
    runTool("sh", "-c", pack, raw, image);
    const blobs = join(data, "blobs");
    {
      // Slow enough that it is killed in the middle, however slow the machine.
      await using slow = await startHttpSource({ content: image, bytesPerSecond: 100_000 });
      const first = await launch(t, ["serve", "--data", data, "--nbd", `unix:${dir}/nbd.sock`]);
      const api = { env: { ULLAGE_API: `unix:${data}/api.sock` } };
      const creating = run(["volume", "create", "v", "--from", slow.url], api);
      const half = (): string | undefined => readdirSync(blobs).find((name) => name.endsWith(".making"));
      while (half() === undefined || bytesOf(join(blobs, half()!, "unpacked")) === 0) await sleep(20);
      first.child.kill("SIGKILL");
      await once(first.child, "close").catch(() => undefined);
      assert.notEqual((await creating).code, 0);
      assert.notEqual(half(), undefined, "it was killed in the middle");
    }
    const second = await launch(t, ["serve", "--data", data, "--nbd", `unix:${dir}/nbd.sock`]);
    const api = { env: { ULLAGE_API: `unix:${data}/api.sock` } };
    assert.deepEqual(readdirSync(blobs), []);
    const listed = await run(["volume", "ls", "--json"], api);
    assert.equal(listed.code, 0, listed.stderr);
    assert.deepEqual((JSON.parse(listed.stdout) as { volumes?: unknown[] }).volumes ?? JSON.parse(listed.stdout), []);
    await using quick = await startHttpSource({ content: image });
    const made = await run(["volume", "create", "v", "--from", quick.url], api);
    assert.equal(made.code, 0, made.stderr);
    runTool("qemu-img", "convert", "-f", "raw", "-O", "raw", `nbd+unix:///v?socket=${dir}/nbd.sock`, back);
    assert.ok(readFileSync(back).equals(readFileSync(raw)));
    assert.equal(readdirSync(blobs).length, 1);
    assert.equal((await second.stop()).code, 0);
    const checked = await run(["check", data]);
    assert.equal(checked.code, 0, checked.stdout + checked.stderr);
  });
}
