import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { temporaryDirectory } from "../daemon/support.ts";
import { startHttpSource } from "../support/http-source.ts";
import { artifact, startFakeRegistry } from "../support/registry-fake.ts";
import { requireTool } from "../support/tools.ts";
import { Browser } from "./browser.ts";
import { startDashboard } from "./support.ts";

const megabyte = 2 ** 20;

const badges = `[...document.querySelectorAll(".origin .chip")].map((each) => each.textContent)`;

/** A browser notes answers that are no success. */
const withoutRefusals = (problems: readonly string[]): string[] =>
  problems.filter((each) => !/status of 4(09|22) .*\/v1\/volumes$/.test(each));

void test("an image that was compared with its digest says so, on the volume's page and among the images", async (t) => {
  if (!requireTool(t, "chromium")) return;
  const { ullage, url, token } = await startDashboard(t);
  await using registry = await startFakeRegistry();
  const { digest, size } = registry.putBlob(Buffer.alloc(3 * megabyte, "disk"));
  registry.putManifest("team/disk", "v1", artifact({ digest, size }));
  const from = { source: `oci://${registry.host}/team/disk:v1` };
  await ullage.createVolume({ name: "whole", from, settings: { hydrate: "off" } });
  const page = await (await Browser.launch(t)).newPage();
  await page.goto(`${url}#token=${token}`);
  await page.click("a", "whole");
  await page.waitFor(`JSON.stringify(${badges}) === '["not verified yet"]'`);
  await ullage.steerHydration("whole", { state: "running" });
  await page.waitFor(`JSON.stringify(${badges}) === '["verified"]'`);
  await page.evaluate(`location.hash = "#/images"`);
  await page.waitFor(`document.querySelector(".cell-state")?.innerText.includes("verified")`);
  const [{ id }] = await ullage.listImages();
  assert.equal((await ullage.showImage(id)).verified, true);
  assert.deepEqual(page.problems, []);
});

void test("a volume without a cache is made from the dialog, and offers nothing that it can't have", async (t) => {
  if (!requireTool(t, "chromium")) return;
  const { ullage, url, token } = await startDashboard(t);
  await using source = await startHttpSource({ content: Buffer.alloc(3 * megabyte, "x") });
  const page = await (await Browser.launch(t)).newPage();
  await page.goto(`${url}#token=${token}`);
  await page.click("button", "New volume");
  await page.fill("[name=name]", "through");
  await page.fill("[name=source]", source.url);
  await page.click("summary", "More");
  await page.tabTo("[name=cache]");
  await page.type("none");
  await page.waitFor(`document.querySelector("[name=hydrate]").disabled`);

  // What contradicts it is refused, and everything that was typed stays.
  await page.click("[name=download]");
  await page.click("button.primary", "Create");
  await page.waitFor(`document.querySelector("dialog .problem")?.innerText.includes("409 not-cached")`);
  await page.see("with cache=none nothing of it is kept");
  await page.click("[name=download]");
  await page.click("button.primary", "Create");
  await page.waitFor(`location.hash === "#/volumes/through"`);
  const { settings, hydration } = await ullage.showVolume("through");
  assert.deepEqual([settings.cache, settings.hydrate, hydration.state], ["none", "off", "none"]);

  await page.waitFor(`JSON.stringify(${badges}) === '["no cache"]'`);
  const headings = await page.evaluate(`[...document.querySelectorAll("h2")].map((each) => each.textContent)`);
  assert.ok(!(headings as string[]).includes("Hydration"), String(headings));
  assert.equal(await page.evaluate(`document.querySelector("select[name=hydrate]")`), null);
  await page.click("a", "← Volumes");
  await page.waitFor(`document.querySelector(".cell-hydration")?.innerText === "no cache"`);
  assert.equal(await page.evaluate(`document.querySelector("[aria-label='Hydrate through']")`), null);
  // The same version with a cache is no older one.
  await ullage.createVolume({ name: "kept", from: { source: source.url } });
  await page.click("nav a", "Images");
  await page.waitFor(`document.querySelectorAll("tbody tr").length === 2`);
  const states = `[...document.querySelectorAll(".cell-state")].map((each) => each.innerText).sort().join()`;
  await page.waitFor(`/complete.*source (ok|not asked)\\s+not kept/s.test(${states})`);
  assert.doesNotMatch(await page.evaluate(states), /older/);
  assert.equal(await page.evaluate(`document.querySelectorAll("[aria-label^='Pin ']").length`), 1);
  assert.deepEqual(withoutRefusals(page.problems), []);
});

void test("what the server refuses says why, and shows the box that would allow it", async (t) => {
  if (!requireTool(t, "chromium", "qemu-img")) return;
  const { ullage, url, token } = await startDashboard(t);
  const directory = await temporaryDirectory(t);
  await using loose = await startHttpSource({ content: Buffer.alloc(megabyte, "l"), etag: null });
  writeFileSync(join(directory, "base.raw"), Buffer.alloc(megabyte, "b"));
  const top = join(directory, "top.qcow2");
  execFileSync("qemu-img", ["create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", top]);
  const page = await (await Browser.launch(t)).newPage();
  await page.goto(`${url}#token=${token}`);
  const make = async (name: string, source: string, box: string, refusal: string): Promise<void> => {
    await page.click("button", "New volume");
    await page.fill("[name=name]", name);
    await page.fill("[name=source]", source);
    await page.click("button.primary", "Create");
    await page.see(refusal);
    assert.match(await page.evaluate(`document.querySelector("dialog .problem").innerText`), /\n42\d [a-z-]+/);
    await page.click(box);
    await page.click("button.primary", "Create");
    await page.waitFor(`location.hash === "#/volumes/${name}"`);
  };
  await make("loose", loose.url, "[name=unpinned]", "offers nothing by which a change could be noticed");
  await page.waitFor(`JSON.stringify(${badges}) === '["unpinned source"]'`);
  assert.equal((await ullage.showVolume("loose")).pinned, false);
  await page.click("a", "← Volumes");
  await make("layered", top, "[name=allowBacking]", "backing");
  const bytes = new IoBuffer(512);
  await (await ullage.getDevice("layered")).read(0, 512, bytes, 0);
  assert.equal(bytes.bytes.toString("latin1", 0, 512), "b".repeat(512));
  assert.deepEqual(withoutRefusals(page.problems), []);
});
