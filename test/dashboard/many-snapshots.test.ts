import assert from "node:assert/strict";
import { test, type TestContext } from "node:test";
import { requireTool } from "../support/tools.ts";
import { inspect } from "./appearance.ts";
import { Browser, type Page } from "./browser.ts";
import { answerVolumes, fakeVolume, startFakeApi, type FakeApi } from "./fake-api.ts";

/** A volume with two hundred snapshots, some of them with clones. */
function startApi(t: TestContext): Promise<FakeApi> {
  const volumes = [
    fakeVolume("web1", { source: null }),
    fakeVolume("canary", { origin: { volume: "web1", snapshot: "hourly-198", removed: false } }),
  ];
  let snapshots = Array.from({ length: 200 }, (_, index) => {
    const name = `hourly-${String(index).padStart(3, "0")}`;
    const createdAt = new Date(Date.UTC(2026, 10, 1, index)).toISOString();
    return { id: name, name, volume: "web1", size: 2 ** 30, createdAt };
  });
  const paths = {
    "/v1/snapshots": ["GET"],
    "/v1/volumes": ["GET", "POST"],
    "/v1/volumes/{name}/snapshots": ["POST"],
    "/v1/volumes/{name}/snapshots/{snapshot}": ["DELETE"],
    "/v1/volumes/{name}/revert": ["POST"],
  };
  return startFakeApi(t, paths, (request) => {
    const { method, path, query } = request;
    if (path === "/v1/snapshots") {
      const start = Number(query.get("cursor") ?? 0);
      const all = query.get("volume") === "web1" ? snapshots : [];
      const end = start + Number(query.get("limit"));
      return { snapshots: all.slice(start, end), next: end < all.length ? String(end) : null };
    }
    const removed = /^\/v1\/volumes\/web1\/snapshots\/([^/]+)$/.exec(path)?.[1];
    if (method === "DELETE" && removed !== undefined) {
      snapshots = snapshots.filter(({ name }) => name !== removed);
      return { status: 204 };
    }
    if (path.endsWith("/map"))
      return { runs: [{ offset: 0, length: 10 * 2 ** 30, kind: "zero", owner: null }], next: null };
    return answerVolumes(volumes, request);
  });
}

const focused = "(document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent).trim()";

async function pressed(page: Page, ...keys: string[]): Promise<string> {
  for (const key of keys) await page.press(key);
  return page.evaluate<string>(focused);
}

void test("two hundred snapshots are one stop of the Tab key; arrow keys go between them and their actions", async (t) => {
  if (!requireTool(t, "chromium")) return;
  const { url } = await startApi(t);
  const page = await (await Browser.launch(t)).newPage();
  await page.goto(`${url}#/volumes/web1`);
  await page.see("hourly-199");
  await page.see("canary");
  await page.click("button", "Show 100 of 188 older snapshots");
  await page.click("button", "Show 88 older snapshots");
  assert.equal(await page.evaluate(`document.querySelectorAll(".tree [role=row]").length`), 201);
  // The button is gone; the focus is where the new rows begin.
  assert.equal(await page.evaluate(focused), "Copy address of hourly-087");

  await page.tabTo("[name=snapshot-filter]");
  assert.equal(await pressed(page, "Tab"), "Copy address of hourly-087");
  assert.equal(await page.evaluate(`document.activeElement.matches(":focus-visible")`), true);
  assert.notEqual(await page.evaluate(`getComputedStyle(document.activeElement).outlineStyle`), "none");
  assert.equal(await pressed(page, "ArrowUp"), "Copy address of hourly-088");
  assert.equal(await pressed(page, "End", "ArrowDown", "ArrowDown"), "Remove hourly-086");
  assert.equal(await pressed(page, "ArrowLeft", "PageDown"), "Revert hourly-076");
  assert.equal(await pressed(page, "Home"), "Copy address of hourly-076");
  // Out, and in again where it was.
  const outside = "document.activeElement.closest('.tree') === null";
  await page.press("Tab");
  assert.equal(await page.evaluate(outside), true);
  await page.press("Tab", { shift: true });
  assert.equal(await page.evaluate(focused), "Copy address of hourly-076");
  await page.press("Tab", { shift: true });
  assert.equal(await page.evaluate("document.activeElement.name"), "snapshot-filter");

  await page.evaluate(`document.querySelector("[aria-label='Remove hourly-199']").focus()`);
  assert.equal(await pressed(page, "ArrowDown", "ArrowRight"), "canary", "clones are among the controls of a row");
  assert.equal(await pressed(page, "ArrowUp", "ArrowUp", "ArrowUp"), "Remove hourly-199", "the top is the top");
  assert.deepEqual(page.problems, []);
});

void test("after a snapshot was removed by keyboard the focus is on the one below it, and it is said", async (t) => {
  if (!requireTool(t, "chromium")) return;
  const { url } = await startApi(t);
  const page = await (await Browser.launch(t)).newPage();
  await page.goto(`${url}#/volumes/web1`);
  await page.see("hourly-199");
  await page.evaluate(`document.querySelector("[aria-label='Remove hourly-195']").focus()`);
  await page.press("Enter");
  await page.waitFor(`document.querySelector("dialog[open]") !== null`);
  await page.press("Escape");
  await page.waitFor(`document.querySelector("dialog") === null`);
  assert.equal(await page.evaluate(focused), "Remove hourly-195");
  await page.press("Enter");
  await page.tabTo("button.danger");
  await page.press("Enter");
  await page.waitFor(`document.querySelector("dialog") === null`);
  assert.equal(await page.waitFor(focused), "Remove hourly-194");
  const said = `[...document.querySelectorAll("[role=status]")].map((each) => each.textContent).join()`;
  assert.match(await page.evaluate<string>(said), /Snapshot hourly-195 was removed/);

  await page.fill("[name=snapshot-filter]", "-07");
  await page.see("10 of 199 snapshots");
  assert.equal(await page.evaluate(`document.querySelectorAll(".tree [role=row]").length`), 11);
});

void test("Tab goes through a volume's page from its beginning to its end, and every stop can be seen", async (t) => {
  if (!requireTool(t, "chromium")) return;
  const { url } = await startApi(t);
  const page = await (await Browser.launch(t)).newPage();
  await page.goto(url);
  await page.tabTo(".name", "web1");
  await page.press("Enter");
  await page.waitFor(`document.activeElement.matches("h1") && document.activeElement.textContent === "web1"`);
  await page.see("hourly-199");
  const stops: string[] = [];
  for (;;) {
    await page.press("Tab");
    if (await page.evaluate<boolean>(`document.activeElement === document.body`)) break;
    const { name, seen, outlined } = await page.evaluate<any>(`(() => {
      const at = document.activeElement;
      const { top, bottom, width } = at.getBoundingClientRect();
      return {
        name: ${focused},
        seen: width > 0 && bottom > 0 && top < innerHeight,
        outlined: at.type === "radio" || getComputedStyle(at).outlineStyle !== "none",
      };
    })()`);
    assert.ok(seen && outlined, `${name}: ${JSON.stringify({ seen, outlined })}`);
    stops.push(name);
    assert.ok(stops.length < 80, `no end: ${stops.join(", ")}`);
  }
  const order = ["Clone", "Take snapshot", "Copy the address"].map((name) => stops.indexOf(name));
  assert.ok(!order.includes(-1), stops.join(", "));
  assert.deepEqual(
    order,
    order.toSorted((a, b) => a - b),
  );
});

for (const dark of [false, true]) {
  void test(`two hundred snapshots fit a phone${dark ? " in the dark" : ""}`, async (t) => {
    if (!requireTool(t, "chromium")) return;
    const { url } = await startApi(t);
    const page = await (await Browser.launch(t)).newPage({ width: 375, height: 740, scale: 2, touch: true, dark });
    await page.goto(`${url}#/volumes/web1`);
    await page.see("hourly-199");
    await inspect(page, `phone${dark ? "-dark" : ""}-snapshots`);
  });
}
