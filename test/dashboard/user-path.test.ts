import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { startHttpSource } from "../support/http-source.ts";
import { requireTool } from "../support/tools.ts";
import { Browser } from "./browser.ts";
import { answerVolumes, fakeVolume, startFakeApi } from "./fake-api.ts";
import { startDashboard } from "./support.ts";

const megabyte = 2 ** 20;

void test("a person makes a volume from an image, watches it fill, and removes it", async (t) => {
  if (!requireTool(t, "chromium")) return;
  const dashboard = await startDashboard(t);
  const { ullage } = dashboard;
  await ullage.serveNbd([{ kind: "tcp", host: "127.0.0.1", port: 0 }]);
  await using source = await startHttpSource({
    content: Buffer.alloc(8 * megabyte, "an image "),
    bytesPerSecond: 64 * 1024,
  });
  const page = await (await Browser.launch(t)).newPage();

  // The link that `serve` prints: its token is taken out of the address bar, and a reload still knows it.
  await page.goto(`${dashboard.url}#token=${dashboard.token}`);
  await page.see("There are no volumes yet");
  assert.equal(await page.evaluate("location.href"), `${dashboard.url}#/`);
  await page.reload();
  await page.see("There are no volumes yet");

  await page.click("button", "New volume");
  await page.fill("[name=name]", "web1");
  await page.fill("[name=source]", source.url);
  await page.click("button", "Create");
  await page.waitFor(`location.hash === "#/volumes/web1"`);

  // The map is drawn, and says what is where.
  await page.see("at the source only");
  await page.waitFor(`document.querySelector("canvas")?.height > 0`);
  const { uri } = ullage.health().listeners[0];
  await page.see(`nbdcopy ${uri}web1 web1.raw`);

  // It fills: all of it is local, and the source is not needed any more.
  source.limitTo(100 * megabyte);
  await page.see("complete");
  await page.waitFor(`!document.querySelector(".legend").innerText.includes("at the source only")`);
  await source.pause();

  // Removing takes its name, typed.
  await page.click("button", "Remove");
  await page.fill("[name=confirm]", "web");
  assert.equal(await page.evaluate(`document.querySelector("dialog .danger").disabled`), true);
  await page.type("1");
  await page.click("button", "Remove for good");
  await page.see("There are no volumes yet");
  assert.deepEqual(await ullage.listVolumes(), []);
  assert.deepEqual(page.problems, []);
});

void test("everything can be done with the keyboard alone", async (t) => {
  if (!requireTool(t, "chromium")) return;
  const dashboard = await startDashboard(t);
  const page = await (await Browser.launch(t)).newPage();
  await page.goto(`${dashboard.url}#token=${dashboard.token}`);
  await page.see("There are no volumes yet");

  // Making one: the dialog opens at its name and keeps the focus inside; the arrows choose what it starts from.
  await page.press("n");
  await page.waitFor(`document.activeElement.name === "name"`);
  await page.type("disk1");
  await page.tabTo("[name=kind]");
  await page.press("ArrowRight");
  await page.tabTo("[name=size]");
  await page.type("1G");
  await page.press("Enter");
  await page.waitFor(`location.hash === "#/volumes/disk1"`);
  await page.see("zeros");

  // The map: arrows move over it and it says where one is.
  await page.tabTo("canvas");
  const value = `document.querySelector("canvas").getAttribute("aria-valuetext")`;
  for (const key of ["Home", "ArrowRight", "ArrowRight"]) await page.press(key);
  await page.waitFor(`${value}.startsWith("512 KiB – 768 KiB:")`);
  assert.match(await page.evaluate(value), /zeros 100 %$/);
  await page.press("End");
  await page.waitFor(`${value}.includes("– 1 GiB:")`);

  // A setting.
  await page.tabTo("[name=sync]");
  await page.press("ArrowDown");
  await page.tabTo("button", "Save");
  await page.press("Enter");
  await page.see("Saved");
  assert.equal((await dashboard.ullage.showVolume("disk1")).settings.sync, "always");

  // Escape leaves a dialog, and the focus goes back to where it was.
  await page.tabTo("a", "← Volumes");
  await page.press("Enter");
  await page.waitFor(`document.querySelector("h1").textContent === "Volumes"`);
  await page.see("disk1");
  await page.press("/");
  await page.type("disk");
  await page.tabTo("button", "Remove");
  await page.press("Enter");
  await page.waitFor(`document.activeElement.closest("dialog") !== null`);
  await page.press("Escape");
  await page.waitFor(`document.querySelector("dialog") === null`);
  await page.waitFor(`document.activeElement.textContent.trim() === "Remove"`);
  await page.press("Enter");
  await page.tabTo("[name=confirm]");
  await page.type("disk1");
  await page.press("Enter");
  await page.see("There are no volumes yet");
  assert.deepEqual(page.problems, []);
});

void test("hydration is paused, limited and resumed from the page", async (t) => {
  if (!requireTool(t, "chromium")) return;
  const dashboard = await startDashboard(t);
  const { ullage } = dashboard;
  await using source = await startHttpSource({
    content: Buffer.alloc(64 * megabyte, "an image "),
    bytesPerSecond: megabyte / 2,
  });
  await ullage.createVolume({ name: "slow", from: { source: source.url } });
  const page = await (await Browser.launch(t)).newPage();
  await page.goto(`${dashboard.url}#token=${dashboard.token}`);

  await page.click("button", "Pause");
  await page.see("paused at");
  assert.equal((await ullage.showVolume("slow")).hydration.state, "paused");
  await page.click("a", "slow");
  await page.fill("[name=rate]", "1M");
  await page.fill("[name=priority]", "7");
  await page.click("button", "Apply");
  await page.see("now 1 MiB/s");
  await page.click("button", "Resume");
  await page.waitFor(`[...document.querySelectorAll("button")].some((each) => each.textContent.trim() === "Pause")`);
  const { state, limitBytesPerSecond, priority } = (await ullage.showVolume("slow")).hydration;
  assert.deepEqual(
    { state, limitBytesPerSecond, priority },
    { state: "running", limitBytesPerSecond: megabyte, priority: 7 },
  );

  // What can't be understood is said, and stays to be mended.
  await page.fill("[name=rate]", "fast");
  await page.click("button", "Apply");
  await page.see("“fast” is no rate");
  assert.equal(await page.evaluate(`document.querySelector("[name=rate]").value`), "fast");
  assert.deepEqual(page.problems, []);
});

void test("while a volume is being removed its page asks nothing about it; when that is refused, it goes on asking", async (t) => {
  if (!requireTool(t, "chromium")) return;
  const volumes = [fakeVolume("web1", { source: null })];
  let refuse = true;
  const paths = { "/v1/volumes": ["GET"], "/v1/volumes/{name}": ["GET", "DELETE"] };
  const { url, requests } = await startFakeApi(t, paths, async (request) => {
    if (request.method === "DELETE") {
      if (refuse) return { status: 409, body: { status: 409, code: "in-use", detail: "a client has it" } };
      volumes.pop();
      await sleep(3000); // longer than the page waits from one question to the next
      return { status: 204 };
    }
    if (request.path.endsWith("/map"))
      return { runs: [{ offset: 0, length: 10 * 2 ** 30, kind: "zero", owner: null }], next: null };
    const isOfVolume = request.path.startsWith("/v1/volumes/");
    return isOfVolume && volumes.length === 0 ? undefined : answerVolumes(volumes, request);
  });
  const page = await (await Browser.launch(t)).newPage();
  await page.goto(`${url}#/volumes/web1`);
  await page.click("button", "Remove");
  await page.fill("[name=confirm]", "web1");
  await page.click("button", "Remove for good");
  await page.see("A client has it");
  const asked = requests.length;
  while (requests.length === asked) await sleep(50);
  page.problems = []; // the refusal is one for the browser
  refuse = false;
  await page.click("button", "Remove for good");
  await page.see("There are no volumes yet");
  assert.deepEqual(page.problems, []);
});
