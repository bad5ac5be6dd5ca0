import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import type { UllageEvent } from "../../src/daemon/events.ts";
import type { Ullage } from "../../src/daemon/ullage.ts";
import type { VolumeView } from "../../src/daemon/views.ts";
import { pattern } from "../backend/support.ts";
import { secrets, worldEnv, worlds } from "../support/source-worlds.ts";
import { requireTool } from "../support/tools.ts";
import { openUllage, temporaryDirectory, untilDetached } from "./support.ts";

/*
 * Every kind of source, seen from a volume: its source goes and comes, changes, and is not needed any more. Whatever it does,
 * the volume is never worse than `degraded`, and is well again without anybody's help.
 */

const MiB = 2 ** 20;
const content = pattern(24 * MiB);
const newer = pattern(24 * MiB, 7);
const [near, written, far, farther] = [0, 6 * MiB, 12 * MiB, 20 * MiB];
const length = 64 * 1024;
const mark = Buffer.alloc(4096, "mark");

Object.assign(process.env, worldEnv);

async function read(ullage: Ullage, name: string, offset: number, bytes = length): Promise<Buffer> {
  const buffer = new IoBuffer(bytes);
  await (await ullage.getDevice(name)).read(offset, bytes, buffer, 0);
  return buffer.bytes;
}

async function reads(ullage: Ullage, name: string, offset: number, of = content): Promise<void> {
  assert.ok((await read(ullage, name, offset)).equals(of.subarray(offset, offset + length)), `${name} at ${offset}`);
}

async function write(ullage: Ullage, name: string): Promise<void> {
  const device = await ullage.getDevice(name);
  await device.write(written, mark.length, IoBuffer.from(mark), 0);
  await device.flush();
}

/** What was told of a volume's state, in order. */
async function statesTold(ullage: Ullage, name: string, last: VolumeView["state"]): Promise<string[]> {
  for (let n = 0; ; n++) {
    const events = ullage.events.read(ullage.events.first, 2000);
    const isOfVolume = (event: UllageEvent): event is UllageEvent & { name: "volume-changed" } =>
      event.name === "volume-changed" && event.data.name === name;
    const states = events.filter(isOfVolume).map(({ data }) => data.state);
    const changes = states.filter((state, at) => state !== states[at - 1]);
    if (changes.at(-1) === last) return changes;
    assert.ok(n < 500, `${name} was told to be ${changes.join(", ")}, and never ${last}`);
    await sleep(20);
  }
}

function findings(ullage: Ullage): Record<string, string> {
  return Object.fromEntries(ullage.health().warnings.map(({ code, message }) => [code, message]));
}

for (const kind of worlds) {
  const patience = { timeout: 120_000 };
  const settings = { hydrate: "off" } as const;
  void test(
    `${kind.name}: while the source is away a volume serves what it has, also after a restart; then it is well, and detached needs no source`,
    patience,
    async (t) => {
      if (!requireTool(t, ...kind.tools)) return;
      const world = await kind.start(t, content);
      const from = { source: world.source, ...(kind.unpinned ? { unpinned: true } : {}) };
      const dataDir = join(await temporaryDirectory(t), "data");
      const options = { dataDir, sourceSettings: world.settings };
      const first = await openUllage(t, options);
      const made = await first.createVolume({ name: "v", from, settings });
      assert.equal(made.pinned, !kind.unpinned);
      await reads(first, "v", near);

      await world.down();
      await write(first, "v");
      await reads(first, "v", near);
      await assert.rejects(read(first, "v", far), { name: /IoError|SourceError/ });
      const { state, reason } = await first.showVolume("v");
      assert.equal(state, "degraded");
      assert.match(reason ?? "", / \(check the .*\)$/);
      assert.match(findings(first)["volume-degraded"], /^volume 'v' is degraded: /);
      for (const secret of secrets) assert.ok(!JSON.stringify([reason, findings(first)]).includes(secret));
      await statesTold(first, "v", "degraded");
      await world.up();
      await reads(first, "v", far);
      assert.equal((await first.showVolume("v")).state, "ok");
      await statesTold(first, "v", "ok");

      await world.down();
      await first.close();
      const second = await openUllage(t, options);
      await reads(second, "v", near);
      assert.deepEqual(await read(second, "v", written, mark.length), mark);
      await assert.rejects(read(second, "v", farther));
      await second.steerHydration("v", { state: "running" });
      await world.up();
      await reads(second, "v", farther);
      await untilDetached(second, "v");
      assert.equal((await second.showVolume("v")).state, "ok");

      await world.down();
      await second.close();
      const third = await openUllage(t, options);
      const expected = Buffer.from(content);
      mark.copy(expected, written);
      assert.ok((await read(third, "v", 0, content.length)).equals(expected));
      const { state: last, hydration } = await third.showVolume("v");
      assert.deepEqual([last, hydration.state], ["ok", "detached"]);
      assert.equal(third.health().checks.find(({ name }) => name === "sources")?.status, "ok");
    },
  );

  void test(
    `${kind.name}: a source that changed makes a volume degraded and says what to do; what is here stays, and the new version is an image of its own`,
    patience,
    async (t) => {
      if (!requireTool(t, ...kind.tools)) return;
      const world = await kind.start(t, content);
      const from = { source: world.source, ...(kind.unpinned ? { unpinned: true } : {}) };
      const dataDir = join(await temporaryDirectory(t), "data");
      const options = { dataDir, sourceSettings: world.settings };
      const first = await openUllage(t, options);
      await first.createVolume({ name: "old", from, settings });
      await reads(first, "old", near);
      await write(first, "old");

      await world.change(newer);
      await assert.rejects(read(first, "old", far), { name: /IoError|SourceError/ });
      await statesTold(first, "old", "degraded");
      const { reason } = await first.showVolume("old");
      assert.match(reason ?? "", /create a new volume from /);
      assert.match(findings(first)["volume-degraded"], /create a new volume from /);
      const gone = kind.name.startsWith("oci") ? "source-not-found" : "source-changed";
      assert.ok(findings(first)[gone] !== undefined, JSON.stringify(findings(first)));
      await reads(first, "old", near);
      assert.deepEqual(await read(first, "old", written, mark.length), mark);

      await first.createVolume({ name: "new", from, settings });
      for (const offset of [near, far]) await reads(first, "new", offset, newer);
      const versions = (await first.listBlobs()).map(({ volumes, identity }) => ({ volumes, identity }));
      assert.deepEqual(versions.flatMap(({ volumes }) => volumes).toSorted(), ["new", "old"]);
      assert.notEqual(versions[0].identity, versions[1].identity);
      assert.equal((await first.showVolume("new")).state, "ok");

      await first.close();
      const second = await openUllage(t, options);
      await reads(second, "old", near);
      await assert.rejects(read(second, "old", farther));
      assert.equal((await second.showVolume("old")).state, "degraded");
      await reads(second, "new", farther, newer);
    },
  );
}
