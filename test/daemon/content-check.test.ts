import assert from "node:assert/strict";
import { test } from "node:test";
import type { UllageEvent } from "../../src/daemon/events.ts";
import { pattern } from "../backend/support.ts";
import { artifact, startFakeRegistry } from "../support/registry-fake.ts";
import { openUllage } from "./support.ts";

const MiB = 1024 * 1024;

void test("durability rule 36: a registry that sends a wrong byte in the middle: the volume says so, is fetched again, and is detached only when all of it is right", async (t) => {
  await using registry = await startFakeRegistry();
  const content = pattern(8 * MiB + 512);
  const layer = registry.putBlob(content);
  registry.putManifest("disks/vm", "1", artifact(layer));
  const ullage = await openUllage(t, { allowSources: ["any"] });
  content[5 * MiB + 7] ^= 1; // what the registry keeps is damaged
  const events: UllageEvent[] = [];
  const forget = ullage.events.onPublish(() => {
    events.push(...ullage.events.read(ullage.events.end - 1, 1));
  });
  t.after(forget);
  const source = `oci://${registry.host}/disks/vm:1`;
  await ullage.createVolume({ name: "vm", from: { source } });
  const until = async (what: string, holds: () => Promise<boolean>): Promise<void> => {
    for (let tries = 0; !(await holds()); tries++) {
      assert.ok(tries < 3000, `never: ${what}`);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  };
  await until("degraded", async () => (await ullage.showVolume("vm")).state === "degraded");
  const { reason, hydration } = await ullage.showVolume("vm");
  assert.match(reason ?? "", /has the digest sha256:[0-9a-f]+, not sha256:/);
  assert.equal(hydration.state, "waiting");
  const health = ullage.health();
  assert.match(JSON.stringify(health), /"code":"source-wrong-bytes"/);
  assert.ok(
    events.some(({ name, data }) => name === "warning" && "code" in data && data.code === "source-wrong-bytes"),
  );
  const [wrong] = await ullage.listBlobs();
  assert.deepEqual([wrong.verified, wrong.sourceState.state], [false, "failing"]);
  content[5 * MiB + 7] ^= 1; // somebody has mended it
  await until("detached", async () => {
    const { state } = (await ullage.showVolume("vm")).hydration;
    if (state === "waiting") await ullage.steerHydration("vm", { state: "running" });
    return state === "detached";
  });
  const [right] = await ullage.listBlobs();
  assert.deepEqual([right.verified, right.sourceState.state, right.readyBytes], [true, "notNeeded", content.length]);
  assert.doesNotMatch(JSON.stringify(ullage.health()), /source-wrong-bytes/);
});
