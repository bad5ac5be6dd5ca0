import assert from "node:assert/strict";
import { test } from "node:test";
import { requireTool } from "../support/tools.ts";
import { Browser } from "./browser.ts";
import { answerVolumes, fakeVolume, health, startFakeApi } from "./fake-api.ts";
import { startDashboard } from "./support.ts";

void test("without a token the page asks for one, and says when it is wrong", async (t) => {
  if (!requireTool(t, "chromium")) return;
  const dashboard = await startDashboard(t);
  const page = await (await Browser.launch(t)).newPage();
  await page.goto(dashboard.url);
  await page.see("A token, please");
  await page.fill("[name=token]", "ullage_wrong");
  await page.click("button", "Go on");
  await page.see("not one of this server's");
  await page.fill("[name=token]", dashboard.token);
  await page.press("Enter");
  await page.see("There are no volumes yet");
  assert.equal(await page.evaluate("sessionStorage.length"), 1);
  assert.equal(await page.evaluate("localStorage.length + document.cookie.length"), 0);
  assert.ok(!(await page.evaluate<string>("document.documentElement.outerHTML")).includes(dashboard.token));
  assert.ok(
    page.problems.every((problem) => problem.includes("401")),
    page.problems.join("\n"),
  );
});

void test("what the server refuses is told with its hint, and what was typed stays", async (t) => {
  if (!requireTool(t, "chromium")) return;
  const dashboard = await startDashboard(t);
  await dashboard.ullage.createVolume({ name: "web1", size: 2 ** 20 });
  const page = await (await Browser.launch(t)).newPage();
  await page.goto(`${dashboard.url}#token=${dashboard.token}`);
  await page.click("button", "New volume");
  await page.fill("[name=name]", "web1");
  await page.fill("[name=source]", "/nowhere/disk.raw");
  await page.fill("[name=size]", "3G");
  await page.click("button", "Create");
  await page.waitFor(`document.querySelector("dialog .problem")?.innerText.includes("409 name-taken")`);
  await page.fill("[name=name]", "web2");
  await page.click("button", "Create");
  await page.waitFor(`document.querySelector("dialog .problem")?.innerText.includes("/nowhere/disk.raw")`);
  const typed = `["name", "source", "size"].map((name) => document.querySelector("[name=" + name + "]").value)`;
  assert.deepEqual(await page.evaluate(typed), ["web2", "/nowhere/disk.raw", "3G"]);
  assert.deepEqual(
    (await dashboard.ullage.listVolumes()).map(({ name }) => name),
    ["web1"],
  );
});

void test("a daemon that goes away is noticed, and the page goes on by itself when it is back", async (t) => {
  if (!requireTool(t, "chromium")) return;
  const dashboard = await startDashboard(t);
  await dashboard.ullage.createVolume({ name: "before", size: 2 ** 20 });
  const page = await (await Browser.launch(t)).newPage();
  await page.goto(`${dashboard.url}#token=${dashboard.token}`);
  await page.see("before");

  await page.click("button", "New volume");
  await page.fill("[name=name]", "typed");
  await page.click(".choice span", "Empty");
  await page.fill("[name=size]", "1M");
  await dashboard.closeApi();
  await page.click("button", "Create");
  await page.waitFor(`document.querySelector("dialog .problem")?.innerText.includes("can't be reached")`);
  await page.see("What you see may be old");
  await page.see("before");
  assert.equal(await page.evaluate(`document.querySelector("[name=name]").value`), "typed");

  await dashboard.ullage.createVolume({ name: "meanwhile", size: 2 ** 20 });
  await dashboard.openApi();
  await page.click("button", "Create");
  await page.waitFor(`location.hash === "#/volumes/typed"`);
  await page.click("a", "← Volumes");
  await page.see("meanwhile");
  await page.unsee("What you see may be old");
});

void test("a volume that somebody else removed is said to be gone", async (t) => {
  if (!requireTool(t, "chromium")) return;
  const dashboard = await startDashboard(t);
  await dashboard.ullage.createVolume({ name: "shared", size: 2 ** 20 });
  const page = await (await Browser.launch(t)).newPage();
  await page.goto(`${dashboard.url}#token=${dashboard.token}`);
  await page.click("a", "shared");
  await page.see("zeros");
  await dashboard.ullage.removeVolume("shared");
  await page.waitFor(`document.querySelector(".problem")?.innerText.includes("404 not-found")`);
  await page.click("a", "← Volumes");
  await page.see("There are no volumes yet");
});

void test("a poisoned volume says why, and goes on only when its loss is accepted by name", async (t) => {
  if (!requireTool(t, "chromium")) return;
  const volume = fakeVolume("hurt", { state: "lostUnflushed", reason: "a power cut lost writes", source: null });
  const { url, requests } = await startFakeApi(t, {}, (request) => {
    if (request.path.endsWith("/map")) return { runs: [], next: null };
    if (!request.path.endsWith("/reopen")) return answerVolumes([volume], request);
    if (!request.body.acceptLoss) {
      const detail = "the loss was not accepted";
      return { status: 409, body: { status: 409, code: "loss-not-accepted", detail, hint: "accept it" } };
    }
    Object.assign(volume, { state: "ok", reason: null });
    return volume;
  });
  const page = await (await Browser.launch(t)).newPage();
  await page.goto(`${url}#/volumes/hurt`);
  await page.see("power cut lost writes");
  await page.click("button", "Reopen");
  await page.see("Accept it");
  await page.click("button", "Accept the loss…");
  await page.fill("[name=confirm]", "hurt");
  await page.click("button", "Go on without them");
  await page.unsee("power cut lost writes");
  const asked = requests.filter(({ path }) => path.endsWith("/reopen")).map(({ body }) => body);
  assert.deepEqual(asked, [{ acceptLoss: false }, { acceptLoss: true }]);
});

void test("a token that is removed while somebody looks, or that was never good, is asked for anew, with the reason", async (t) => {
  if (!requireTool(t, "chromium")) return;
  const dashboard = await startDashboard(t);
  await dashboard.ullage.createVolume({ name: "web1", size: 2 ** 20 });
  const secret = await dashboard.makeToken("laptop");
  const page = await (await Browser.launch(t)).newPage();
  await page.goto(`${dashboard.url}#token=ullage_nonsense`);
  await page.see("does not accept this tab's token");
  await page.fill("[name=token]", `${dashboard.url}#token=${secret}`);
  await page.press("Enter");
  await page.click("a", "web1");
  await page.see("Settings");

  await dashboard.removeToken("laptop");
  await page.see("does not accept this tab's token");
  await page.fill("[name=token]", dashboard.token);
  await page.press("Enter");
  await page.see("Settings");
  await page.waitFor(`document.querySelector(".chip.good[title]") !== null`);
  await dashboard.ullage.createVolume({ name: "web2", size: 2 ** 20 });
  await page.click("a", "← Volumes");
  await page.see("web2");
});

void test("a daemon that comes back is said to be back, and one of another version asks to load the page anew", async (t) => {
  if (!requireTool(t, "chromium")) return;
  let version = "0.1.0";
  let broken = false;
  const { url } = await startFakeApi(t, {}, (request) => {
    if (broken) return Promise.reject(new Error("gone")); // the connection is closed
    if (request.path === "/v1/health") return { ...health, version };
    return answerVolumes([fakeVolume("web1")], request);
  });
  const page = await (await Browser.launch(t)).newPage();
  await page.goto(url);
  await page.see("web1");
  broken = true;
  await page.see("What you see may be old");
  assert.equal(await page.evaluate(`document.querySelector(".top .chip").textContent`), "offline");
  await page.see("web1");
  [broken, version] = [false, "0.2.0"];
  await page.click("button", "Try now");
  await page.unsee("What you see may be old");
  await page.see("of another version now: 0.2.0");
  const said = `[...document.querySelectorAll("[role=status]")].some((each) => each.textContent === "The server is back.")`;
  assert.equal(await page.evaluate(said), true);
  await page.click("button", "Reload");
  await page.unsee("of another version now");
  await page.see("0.2.0");
});
