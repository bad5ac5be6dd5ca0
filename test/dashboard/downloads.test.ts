import assert from "node:assert/strict";
import { test } from "node:test";
import { startHttpSource } from "../support/http-source.ts";
import { requireTool } from "../support/tools.ts";
import { Browser, type Page } from "./browser.ts";
import { startDashboard } from "./support.ts";

const megabyte = 2 ** 20;

async function download(page: Page, name: string, source: string): Promise<void> {
  await page.click("button", "New volume");
  await page.fill("[name=name]", name);
  await page.fill("[name=source]", source);
  await page.click("summary");
  await page.click("[name=download]");
  await page.click("button", "Create");
  await page.waitFor(`location.hash === "#/volumes/${name}"`);
}

void test("a download is followed to its end, or cancelled, or said to have failed", async (t) => {
  if (!requireTool(t, "chromium")) return;
  const dashboard = await startDashboard(t);
  const content = Buffer.alloc(8 * megabyte, "an image ");
  await using slow = await startHttpSource({ content, bytesPerSecond: 64 * 1024 });
  await using endless = await startHttpSource({ content, bytesPerSecond: 64 * 1024 });
  await using failing = await startHttpSource({ content, bytesPerSecond: megabyte });
  const page = await (await Browser.launch(t)).newPage();
  await page.goto(`${dashboard.url}#token=${dashboard.token}`);

  await download(page, "followed", slow.url);
  await page.see("Its image is downloaded");
  slow.limitTo(100 * megabyte);
  await page.see("Where its bytes are");
  await page.unsee("Its image is downloaded");

  await page.click("a", "← Volumes");
  await download(page, "cancelled", endless.url);
  await page.see("Its image is downloaded");
  await page.click("button", "Cancel");
  await page.see("404 not-found");

  await page.click("a", "← Volumes");
  failing.onRequest = (request) => (request.start > 0 || !request.ranged ? { kind: "status", status: 403 } : undefined);
  await page.click("button", "New volume");
  await page.fill("[name=name]", "refused");
  await page.fill("[name=source]", failing.url);
  await page.click("summary");
  await page.click("[name=download]");
  await page.click("button", "Create");
  await page.see("403");

  assert.deepEqual(
    (await dashboard.ullage.listVolumes()).map(({ name }) => name),
    ["followed"],
  );
});
