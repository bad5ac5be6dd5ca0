import assert from "node:assert/strict";
import { test } from "node:test";
import { startHttpSource } from "../support/http-source.ts";
import { requireTool } from "../support/tools.ts";
import { Browser } from "./browser.ts";
import { answerCache, answerVolumes, cachePaths, fakeBlob, fakeVolume, startFakeApi } from "./fake-api.ts";
import { startDashboard } from "./support.ts";

const megabyte = 2 ** 20;

void test("an image is pulled, pinned, unpinned and evicted, and the cache holds what the page says", async (t) => {
  if (!requireTool(t, "chromium")) return;
  const dashboard = await startDashboard(t);
  const { ullage } = dashboard;
  await using source = await startHttpSource({ content: Buffer.alloc(3 * megabyte, "x"), path: "/disk.raw" });
  const page = await (await Browser.launch(t)).newPage();
  await page.goto(`${dashboard.url}#token=${dashboard.token}`);
  await page.click("nav a", "Images");
  await page.see("There are no images in the cache");
  assert.equal(await page.evaluate(`document.activeElement.matches("h1")`), true);

  await page.click("button", "Pull image");
  await page.fill("[name=source]", "disk.raw");
  await page.click("button.primary", "Pull");
  await page.see("The image needs an address");
  await page.fill("[name=source]", source.url);
  await page.click("button.primary", "Pull");
  await page.waitFor(`document.querySelector("dialog") === null`);
  await page.waitFor(`document.querySelector(".cell-ready")?.innerText.includes("3 MiB")`);
  await page.see("complete");
  const [blob] = await ullage.listBlobs("", 10);
  assert.equal(blob?.readyBytes, 3 * megabyte);

  await page.click(`[aria-label='Pin ${source.url}']`);
  await page.see("pinned");
  assert.equal((await ullage.showBlob(blob.id)).kept, true);
  assert.equal(await page.evaluate(`document.querySelector("[aria-label^='Evict ']").disabled`), true);
  await page.click(`[aria-label='Unpin ${source.url}']`);
  await page.waitFor(`!document.querySelector(".cell-state").innerText.includes("pinned")`);
  assert.equal((await ullage.showBlob(blob.id)).kept, false);

  await page.click(`[aria-label='Evict ${source.url}']`);
  await page.see("go. No volume needs them");
  await page.press("Escape");
  assert.equal((await ullage.listBlobs("", 10)).length, 1, "nothing goes without an answer");
  await page.click(`[aria-label='Evict ${source.url}']`);
  await page.click("button.danger", "Evict");
  await page.see("3 MiB freed");
  await page.see("There are no images in the cache");
  assert.equal((await ullage.listBlobs("", 10)).length, 0);
  assert.deepEqual(page.problems, []);
});

void test("what volumes need is not evicted: the refusal is told; what none needs is freed at once", async (t) => {
  if (!requireTool(t, "chromium")) return;
  const dashboard = await startDashboard(t);
  const { ullage } = dashboard;
  await using used = await startHttpSource({ content: Buffer.alloc(megabyte, "u"), path: "/used.raw" });
  await using loose = await startHttpSource({ content: Buffer.alloc(megabyte, "l"), path: "/loose.raw" });
  await ullage.createVolume({ name: "web1", from: { source: used.url } });
  const page = await (await Browser.launch(t)).newPage();
  await page.goto(`${dashboard.url}#token=${dashboard.token}`);
  await page.see("web1");
  await page.evaluate(`location.hash = "#/images"`);
  await page.waitFor(`document.querySelector(".users a")?.textContent === "web1"`);
  await page.click(`[aria-label='Evict ${used.url}']`);
  await page.see("was made from");
  await page.click("button.danger", "Evict");
  await page.waitFor(`document.querySelector("dialog .problem")?.innerText.includes("409 in-use")`);
  await page.press("Escape");

  await page.click("button", "Pull image");
  await page.fill("[name=source]", loose.url);
  await page.press("Enter");
  await page.waitFor(`document.querySelectorAll("tbody tr").length === 2`);
  await page.waitFor(
    `[...document.querySelectorAll(".cell-state")].some((each) => each.innerText.includes("complete"))`,
  );
  await page.click("button", "Free unused…");
  await page.see("1 image that no volume was made from");
  await page.click("button.danger", "Free");
  await page.see("1 MiB freed");
  await page.waitFor(`document.querySelectorAll("tbody tr").length === 1`);
  assert.deepEqual(
    (await ullage.listBlobs("", 10)).map(({ source }) => source),
    [used.url],
  );

  await page.click(".users a", "web1");
  await page.waitFor(`location.hash === "#/volumes/web1"`);
});

void test("a pull that fails says which source and why; one that runs is shown and can be stopped", async (t) => {
  if (!requireTool(t, "chromium")) return;
  const job = {
    id: "j1",
    kind: "image-pull",
    target: "https://example.org/a.raw",
    state: "running",
    progress: { done: 2 ** 28, total: 2 ** 30, unit: "bytes" },
  };
  const { url, requests } = await startFakeApi(t, cachePaths, (request) => {
    const { method, path } = request;
    if (method === "POST" && path === "/v1/images") {
      const body = { status: 422, code: "unpinned", detail: "nothing to notice a change by", hint: "accept it" };
      return request.body.unpinned === true ? { status: 202, body: job } : { status: 422, body };
    }
    if (method === "DELETE" && path === "/v1/jobs/j1") {
      job.state = "cancelled";
      return { status: 200, body: job };
    }
    return answerCache([], [job], request);
  });
  const page = await (await Browser.launch(t)).newPage();
  await page.goto(`${url}#/images`);
  await page.see("256 MiB of 1 GiB, 25 %");
  await page.click("button", "Pull image");
  await page.fill("[name=source]", "https://example.org/a.raw");
  await page.press("Enter");
  await page.see("Nothing to notice a change by");
  await page.click("summary", "More");
  await page.fill("[name=format]", "tar+qcow2");
  await page.click("[name=unpinned]");
  await page.click("button.primary", "Pull");
  await page.waitFor(`document.querySelector("dialog") === null`);
  assert.deepEqual(requests.filter(({ method }) => method === "POST").at(-1)?.body, {
    source: "https://example.org/a.raw",
    format: "tar+qcow2",
    unpinned: true,
  });
  await page.click("button", "Stop");
  await page.unsee("Being fetched");
});

void test("a hundred images for a thousand volumes are listed in pages, found by typing and lead to their volumes", async (t) => {
  if (!requireTool(t, "chromium")) return;
  const volumes = Array.from({ length: 1000 }, (_, index) =>
    fakeVolume(`vm-${String(index).padStart(4, "0")}`, { source: `https://images.example.org/i-${index % 100}.raw` }),
  );
  const blobs = Array.from({ length: 100 }, (_, index) =>
    fakeBlob(`i-${index}`, {
      readyBytes: (index + 1) * 2 ** 20,
      volumes: volumes.filter((_each, at) => at % 100 === index).map(({ name }) => name),
      ...(index === 42 ? { identity: null, pinned: false } : {}),
      ...(index === 43 ? { sourceState: { state: "failing", reason: "it answers 503", at: null } } : {}),
    }),
  );
  blobs.push(fakeBlob("i-7-older", { image: "i-7", source: blobs[7].source, createdAt: "2025-01-01T00:00:00.000Z" }));
  const { url, requests } = await startFakeApi(
    t,
    cachePaths,
    (request) => answerCache(blobs, [], request) ?? answerVolumes(volumes, request),
  );
  const page = await (await Browser.launch(t)).newPage();
  await page.goto(`${url}#/images`);
  await page.see("1–50 of 101");
  await page.click("button.sort", "Cached");
  await page.waitFor(`document.querySelector("tbody .name").textContent.endsWith("/i-7.raw")`); // the older one has 1 GiB
  await page.see("older version");
  await page.click("button.sort", "State");
  await page.waitFor(`document.querySelector("tbody tr").innerText.includes("it answers 503")`);
  assert.match(await page.evaluate(`document.querySelectorAll("tbody tr")[1].innerText`), /unpinned source/);
  await page.fill("[type=search]", "vm-0123");
  await page.waitFor(`document.querySelectorAll("tbody tr").length === 1`);
  assert.equal(await page.evaluate(`document.querySelector("tbody .name").textContent`), blobs[23].source);
  await page.click("button", "and 7 more");
  await page.see("vm-0923");
  assert.equal(await page.evaluate(`document.querySelectorAll("tbody tr").length`), 10);
  assert.ok(requests.every(({ path, query }) => path !== "/v1/blobs" || Number(query.get("limit")) <= 100));
  assert.deepEqual(page.problems, []);
});

void test("a server that can't list its cache shows nothing of it", async (t) => {
  if (!requireTool(t, "chromium")) return;
  const { url } = await startFakeApi(t, {}, (request) => answerVolumes([fakeVolume("web1")], request));
  const page = await (await Browser.launch(t)).newPage();
  await page.goto(url);
  await page.see("web1");
  assert.equal(await page.evaluate(`document.querySelector("nav")`), null);
  await page.evaluate(`location.hash = "#/images"`);
  await page.see("There is no such page");
});
