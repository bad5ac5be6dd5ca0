import assert from "node:assert/strict";
import { test } from "node:test";
import { startHttpSource } from "../support/http-source.ts";
import { requireTool } from "../support/tools.ts";
import { Browser } from "./browser.ts";
import { startDashboard } from "./support.ts";

void test("what got into the page could neither run, nor be styled, nor reach another server", async (t) => {
  if (!requireTool(t, "chromium")) return;
  const dashboard = await startDashboard(t);
  await using elsewhere = await startHttpSource({ content: Buffer.from("secret"), path: "/stolen" });
  const page = await (await Browser.launch(t)).newPage();
  await page.goto(`${dashboard.url}#token=${dashboard.token}`);
  await page.see("There are no volumes yet");
  assert.equal(page.problems.length, 0);

  await page.evaluate(`document.body.insertAdjacentHTML("beforeend",
    '<img src="${elsewhere.url}"><img src="x" onerror="window.ran = 1"><p id="styled" style="color: red">x</p>')`);
  await page.evaluate(
    `document.head.append(Object.assign(document.createElement("script"), { text: "window.ran = 1" }))`,
  );
  await page.evaluate(`fetch("${elsewhere.url}").catch(() => undefined)`);
  await page.evaluate(`document.forms.length || document.body.append(
    Object.assign(document.createElement("form"), { action: "${elsewhere.url}" }))`);
  await page.evaluate(`document.forms[0].submit()`);
  await page.waitFor("true");
  assert.equal(await page.evaluate("window.ran"), undefined);
  assert.notEqual(await page.evaluate(`getComputedStyle(document.querySelector("#styled")).color`), "rgb(255, 0, 0)");
  assert.equal(elsewhere.requestCount, 0);
  for (const rule of ["script-src", "style-src", "img-src", "connect-src", "form-action"]) {
    assert.ok(
      page.problems.some((problem) => problem.includes(rule)),
      `${rule}: ${page.problems.join("\n")}`,
    );
  }
});

void test("names and sources are shown as text, whatever they hold", async (t) => {
  if (!requireTool(t, "chromium")) return;
  const dashboard = await startDashboard(t);
  const page = await (await Browser.launch(t)).newPage();
  const name = encodeURIComponent(`<img src=x onerror="window.ran=1">`);
  await page.goto(`${dashboard.url}#token=${dashboard.token}`);
  await page.see("There are no volumes yet");
  await page.evaluate(`location.hash = "#/volumes/${name}"`);
  await page.see(`<img src=x onerror="window.ran=1">`);
  await page.see("404 not-found");
  assert.equal(await page.evaluate(`document.querySelector("main img")`), null);
});
