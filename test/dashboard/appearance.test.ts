import assert from "node:assert/strict";
import { test } from "node:test";
import { requireTool } from "../support/tools.ts";
import { inspect } from "./appearance.ts";
import { Browser, type PageOptions } from "./browser.ts";
import { showroom } from "./showroom.ts";

const screens: Record<string, PageOptions> = {
  desk: { width: 1280, height: 900 },
  "desk-dark": { width: 1280, height: 900, dark: true },
  phone: { width: 375, height: 760, scale: 2, touch: true },
  "phone-dark": { width: 375, height: 760, scale: 2, touch: true, dark: true, reducedMotion: true },
};

for (const [screen, options] of Object.entries(screens)) {
  void test(`everything fits and can be read: ${screen}`, async (t) => {
    if (!requireTool(t, "chromium")) return;
    const { url } = await showroom(t);
    const page = await (await Browser.launch(t)).newPage(options);
    await page.goto(url);
    await page.see("IOPS");
    await inspect(page, `${screen}-list`);

    await page.click("button", "New volume");
    await page.waitFor(`document.querySelector("dialog [name=source]") !== null`);
    await inspect(page, `${screen}-create`);
    await page.click("summary", "More");
    await page.waitFor(`document.querySelector("[name=cache]").checkVisibility()`);
    await inspect(page, `${screen}-create-more`);
    await page.press("Escape");

    await page.click("a", "web-frontend");
    await page.waitFor(`document.querySelector(".legend")?.innerText.includes("written here")`);
    await page.see("before-upgrade");
    await page.see("IOPS");
    await page.evaluate("scrollTo(0, 0)");
    await inspect(page, `${screen}-volume`);
    await page.click("button", "Remove");
    await page.waitFor(`document.querySelector("dialog [name=confirm]") !== null`);
    await inspect(page, `${screen}-remove`);
    await page.press("Escape");

    await page.evaluate(`location.hash = "#/volumes/scratch"`);
    await page.see("no cache");
    await page.see("unpinned source");
    await inspect(page, `${screen}-scratch`);

    await page.click("nav a", "Images");
    await page.see("nothing to know its version by");
    await inspect(page, `${screen}-images`);
    await page.click("[aria-label='Evict https://images.example.org/mail.raw']");
    await page.see("may not come back");
    await inspect(page, `${screen}-evict`);
    await page.press("Escape");
    await page.click("button", "Pull image");
    await page.waitFor(`document.querySelector("dialog [name=source]") !== null`);
    await inspect(page, `${screen}-pull`);
    await page.press("Escape");
    assert.deepEqual(page.problems, []);
  });
}

void test("a volume's page at a glance: the picture of README", async (t) => {
  if (!requireTool(t, "chromium")) return;
  const { url } = await showroom(t);
  const page = await (await Browser.launch(t)).newPage({ width: 1200, height: 860 });
  await page.goto(`${url}#/volumes/web-frontend`);
  await page.waitFor(`/\\d \\S+iB\\/s\\s+Reading|Reading\\s+\\d+/.test(document.body.innerText)`);
  await page.waitFor(`document.querySelector(".legend")?.innerText.includes("written here")`);
  await inspect(page, "readme", { full: false });
});
