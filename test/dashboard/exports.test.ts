import assert from "node:assert/strict";
import { test } from "node:test";
import { requireTool } from "../support/tools.ts";
import { Browser } from "./browser.ts";
import { startDashboard } from "./support.ts";

void test("a volume's page has the addresses of all its names, to be copied, and what it was cloned from", async (t) => {
  if (!requireTool(t, "chromium")) return;
  const { ullage, url, token } = await startDashboard(t);
  await ullage.serveNbd([{ kind: "tcp", host: "127.0.0.1", port: 0 }]);
  const { uri } = ullage.health().listeners[0];
  await ullage.createVolume({ name: "web", size: 1 << 20 });
  await ullage.createSnapshot("web", "s");
  await ullage.addExport({ name: "then", target: "web@s", description: "for the lab" });
  await ullage.createVolume({ name: "copy", from: { snapshot: "web@s" } });

  const page = await (await Browser.launch(t)).newPage();
  await page.goto(`${url}#token=${token}`);
  await page.see("copy");
  await page.evaluate(`location.hash = "#/volumes/web"`);
  await page.see(`${uri}then`);
  await page.see("web@s, read-only, for the lab");
  await page.waitFor(`document.querySelector("[aria-label='Copy the address of then']") !== null`);

  // What is added and removed meanwhile shows by itself.
  await ullage.addExport({ name: "more", target: "web" });
  await page.see(`${uri}more`);
  await ullage.removeExport("then");
  await page.waitFor(`!document.body.innerText.includes("${uri}then")`);

  await page.evaluate(`location.hash = "#/volumes/copy"`);
  await page.see("Cloned from web@s");
  await ullage.removeSnapshot("web", "s");
  await page.see("Cloned from web@s (removed since)");
  assert.deepEqual(page.problems, []);
});
