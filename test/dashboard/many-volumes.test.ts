import assert from "node:assert/strict";
import { test } from "node:test";
import { requireTool } from "../support/tools.ts";
import { Browser } from "./browser.ts";
import { answerVolumes, fakeVolume, startFakeApi } from "./fake-api.ts";

const volumes = Array.from({ length: 1000 }, (_, index) =>
  fakeVolume(`vm-${String(index).padStart(4, "0")}`, {
    size: (index + 1) * 2 ** 30,
    state: index === 777 ? "degraded" : "ok",
    reason: index === 777 ? "the source answers 503" : null,
  }),
);

void test("a thousand volumes are listed in pages, found by typing and ordered by any column", async (t) => {
  if (!requireTool(t, "chromium")) return;
  const { url, requests } = await startFakeApi(t, {}, (request) => answerVolumes(volumes, request));
  const page = await (await Browser.launch(t)).newPage();
  await page.goto(url);
  await page.see("1–50 of 1,000");
  const names = `[...document.querySelectorAll("tbody .name")].map((each) => each.textContent)`;
  assert.deepEqual(
    await page.evaluate(names),
    volumes.slice(0, 50).map(({ name }) => name),
  );

  await page.click("button", "Next");
  await page.see("51–100 of 1,000");
  assert.equal((await page.evaluate<string[]>(names))[0], "vm-0050");

  await page.click("button.sort", "Size");
  await page.waitFor(`${names}[0] === "vm-0999"`);
  assert.equal(await page.evaluate(`document.querySelector("[aria-sort=descending]").textContent.trim()`), "Size ▼");
  await page.click("button.sort", "Size ▼");
  await page.waitFor(`${names}[0] === "vm-0000"`);

  await page.fill("[type=search]", "degraded");
  await page.waitFor(`${names}.join() === "vm-0777"`);
  await page.fill("[type=search]", "0123 example.org");
  await page.waitFor(`${names}.join() === "vm-0123"`);
  await page.fill("[type=search]", "nothing like it");
  await page.see("None of 1,000 volumes matches");
  await page.click("button", "Show all");
  await page.see("of 1,000");

  // The list is read in pages that take the server no time.
  assert.ok(requests.every(({ path, query }) => path !== "/v1/volumes" || Number(query.get("limit")) <= 100));
  assert.deepEqual(page.problems, []);
});

void test("a page that nobody looks at asks for nothing", async (t) => {
  if (!requireTool(t, "chromium")) return;
  const { url, requests } = await startFakeApi(t, {}, (request) => answerVolumes(volumes.slice(0, 3), request));
  const page = await (await Browser.launch(t)).newPage();
  await page.goto(url);
  await page.see("vm-0002");
  // As browsers do it when another tab is in front.
  const show = (hidden: boolean): Promise<unknown> =>
    page.evaluate(`(() => {
      Object.defineProperty(document, "hidden", { configurable: true, value: ${hidden} });
      document.dispatchEvent(new Event("visibilitychange"));
    })()`);
  await show(true);
  let before = -1;
  for (let n = 0; before !== requests.length; n++) {
    assert.ok(n < 5, "it goes on"); // at first, what was on its way comes
    before = requests.length;
    await new Promise((resolve) => setTimeout(resolve, 3000));
  }
  await show(false);
  await page.waitFor(`performance.getEntriesByType("resource").at(-1).startTime > performance.now() - 1000`);
  assert.ok(requests.length > before);
});
