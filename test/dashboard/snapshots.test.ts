import assert from "node:assert/strict";
import { test, type TestContext } from "node:test";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { requireTool } from "../support/tools.ts";
import { Browser } from "./browser.ts";
import { answerVolumes, fakeVolume, startFakeApi, type FakeApi } from "./fake-api.ts";
import { showroom } from "./showroom.ts";
import { startDashboard } from "./support.ts";

const megabyte = 2 ** 20;

const paths = {
  "/v1/snapshots": ["GET"],
  "/v1/volumes": ["GET", "POST"],
  "/v1/volumes/{name}/snapshots": ["POST"],
  "/v1/volumes/{name}/snapshots/{snapshot}": ["DELETE"],
  "/v1/volumes/{name}/revert": ["POST"],
};

/** A server that keeps snapshots in a list and knows nothing of bytes. */
function startSnapshotApi(t: TestContext): Promise<FakeApi> {
  const volumes = [fakeVolume("web1", { source: null })];
  let snapshots: any[] = [];
  let clock = Date.UTC(2026, 0, 1);
  return startFakeApi(t, paths, (request) => {
    const { method, path, query, body } = request;
    if (path === "/v1/snapshots") {
      const start = Number(query.get("cursor") ?? 0);
      const all = snapshots.filter(({ volume }) => volume === query.get("volume"));
      return { snapshots: all.slice(start, start + 2), next: start + 2 < all.length ? String(start + 2) : null };
    }
    if (method === "POST" && path === "/v1/volumes/web1/snapshots") {
      if (snapshots.some(({ name }) => name === body.name)) {
        const detail = `there is a snapshot web1@${body.name} already`;
        return { status: 409, body: { status: 409, code: "name-taken", detail, hint: "choose another name" } };
      }
      const createdAt = new Date((clock += 60_000)).toISOString();
      const made = { id: body.name, name: body.name, volume: "web1", size: 2 ** 30, createdAt };
      snapshots.push(made);
      return { status: 201, body: made };
    }
    const removed = /^\/v1\/volumes\/web1\/snapshots\/([^/]+)$/.exec(path)?.[1];
    if (method === "DELETE" && removed !== undefined) {
      snapshots = snapshots.filter(({ name }) => name !== removed);
      return { status: 204 };
    }
    if (path === "/v1/volumes/web1/revert") return volumes[0];
    if (method === "POST" && path === "/v1/volumes") {
      volumes.push(fakeVolume(body.name, { source: null }));
      return { status: 201, body: volumes.at(-1) };
    }
    if (path.endsWith("/map"))
      return { runs: [{ offset: 0, length: 10 * 2 ** 30, kind: "zero", owner: null }], next: null };
    return answerVolumes(volumes, request);
  });
}

void test("snapshots are taken, listed the newest first, cloned, reverted to and removed", async (t) => {
  if (!requireTool(t, "chromium")) return;
  const { url, requests } = await startSnapshotApi(t);
  const changes = (): object[] =>
    requests.filter(({ method }) => method !== "GET").map(({ method, path, body }) => ({ method, path, body }));
  const page = await (await Browser.launch(t)).newPage();
  await page.goto(`${url}#/volumes/web1`);
  const names = `[...document.querySelectorAll(".tree .name")].map((each) => each.textContent)`;
  for (const name of ["monday", "tuesday", "wednesday"]) {
    await page.fill("[name=snapshot]", name);
    await page.press("Enter");
    await page.waitFor(`${names}[0] === ${JSON.stringify(name)}`);
  }
  assert.deepEqual(await page.evaluate(names), ["wednesday", "tuesday", "monday"]);

  await page.fill("[name=snapshot]", "monday");
  await page.press("Enter");
  await page.see("Choose another name");
  assert.equal(await page.evaluate(`document.querySelector("[name=snapshot]").value`), "monday");

  await page.click("[aria-label='Revert tuesday']");
  await page.fill("[name=confirm]", "web1");
  await page.click("button.danger", "Revert");
  await page.waitFor(`document.querySelector("dialog") === null`);
  assert.deepEqual(changes().at(-1), {
    method: "POST",
    path: "/v1/volumes/web1/revert",
    body: { snapshot: "tuesday", force: false },
  });

  await page.click("[aria-label='Remove monday']");
  await page.click("button.danger", "Remove");
  await page.waitFor(`${names}.join() === "wednesday,tuesday"`);

  await page.click("[aria-label='Clone wednesday']");
  await page.fill("[name=name]", "copy");
  await page.click("button", "Create");
  await page.waitFor(`location.hash === "#/volumes/copy"`);
  assert.deepEqual(changes().at(-1), {
    method: "POST",
    path: "/v1/volumes",
    body: { name: "copy", from: { snapshot: "web1@wednesday" } },
  });
  await page.click("button", "Clone");
  await page.fill("[name=name]", "copy2");
  await page.click("button", "Create");
  await page.waitFor(`location.hash === "#/volumes/copy2"`);
  assert.deepEqual(changes().at(-1), {
    method: "POST",
    path: "/v1/volumes",
    body: { name: "copy2", from: { volume: "copy" } },
  });
});

void test("the snapshots of a volume are a tree with what was cloned of them, and of those", async (t) => {
  if (!requireTool(t, "chromium")) return;
  const { url } = await showroom(t);
  const page = await (await Browser.launch(t)).newPage();
  await page.goto(`${url}#/volumes/web-frontend`);
  await page.see("web-canary");
  const branches = `[...document.querySelectorAll(".tree > li")].map((each) => [
    (each.querySelector(":scope > .grow b") ?? each).textContent.trim(),
    ...[...each.querySelectorAll(".clones a")].map((link) => link.textContent),
  ])`;
  assert.deepEqual(await page.evaluate(branches), [
    ["now"],
    ["before-upgrade", "ci-runner-template-with-a-rather-long-name.2026-11", "ci-runner-7"],
    ["nightly-2026-11-19", "web-canary"],
    ["nightly-2026-11-18"],
  ]);
  await page.click(".clones a", "web-canary");
  await page.waitFor(`location.hash === "#/volumes/web-canary"`);
  await page.goto(`${url}#/volumes/ci-runner-template-with-a-rather-long-name.2026-11`);
  await page.waitFor(`document.querySelector(".tree .now .clones a")?.textContent === "ci-runner-7"`);
});

void test("a server without snapshots shows nothing of them", async (t) => {
  if (!requireTool(t, "chromium")) return;
  const { url } = await startFakeApi(t, {}, (request) =>
    request.path.endsWith("/map") ? { runs: [], next: null } : answerVolumes([fakeVolume("web1")], request),
  );
  const page = await (await Browser.launch(t)).newPage();
  await page.goto(`${url}#/volumes/web1`);
  await page.see("Settings");
  const text = await page.text();
  assert.doesNotMatch(text, /snapshot|clone|resize|rename/i);
});

void test("a real volume is kept, cloned, reverted, grown and renamed; its map tells the layers apart", async (t) => {
  if (!requireTool(t, "chromium")) return;
  const dashboard = await startDashboard(t);
  const { ullage } = dashboard;
  await ullage.serveNbd([{ kind: "tcp", host: "127.0.0.1", port: 0 }]);
  await ullage.createVolume({ name: "web1", size: 64 * megabyte });
  const write = async (text: string, offset: number): Promise<void> => {
    const buffer = new IoBuffer(megabyte);
    buffer.bytes.fill(text);
    const device = await ullage.getDevice("web1");
    await device.write(offset, megabyte, buffer, 0);
  };
  const read = async (name: string): Promise<string> => {
    const buffer = new IoBuffer(4096);
    await (await ullage.getDevice(name)).read(0, 4096, buffer, 0);
    return String.fromCharCode(buffer.bytes[0]);
  };
  await write("a", 0);
  await write("a", 4 * megabyte);
  const page = await (await Browser.launch(t)).newPage();
  await page.goto(`${dashboard.url}#token=${dashboard.token}`);
  await page.click("a", "web1");

  await page.fill("[name=snapshot]", "monday");
  await page.press("Enter");
  await page.see("monday");
  await write("b", 0);
  await write("b", 8 * megabyte);
  await (await ullage.getDevice("web1")).flush();
  await page.waitFor(`document.querySelectorAll(".legend li code").length === 2`);

  await page.click("[aria-label='Clone monday']");
  await page.fill("[name=name]", "copy");
  await page.click("button", "Create");
  await page.waitFor(`location.hash === "#/volumes/copy"`);
  await page.see("Where its bytes are");
  // What is on disk of it belongs to the original too; files take their blocks some time after they were written.
  await page.waitFor(`/[1-9]\\S* MiB\\s+Shared on disk|Shared on disk\\s+[1-9]\\S* MiB/.test(document.body.innerText)`);
  assert.deepEqual([await read("web1"), await read("copy")], ["b", "a"]);

  await page.click("a", "← Volumes");
  await page.click("a", "web1");
  await page.click("[aria-label='Revert monday']");
  await page.fill("[name=confirm]", "web1");
  await page.click("button.danger", "Revert");
  await page.waitFor(`document.querySelector("dialog") === null`);
  assert.equal(await read("web1"), "a");

  await page.fill("[name=new-size]", "1G");
  await page.click("button", "Resize");
  await page.see("now 1 GiB");
  await page.fill("[name=new-name]", "web2");
  await page.click("button", "Rename");
  await page.waitFor(`location.hash === "#/volumes/web2"`);
  await page.see("monday");
  assert.equal((await ullage.showVolume("web2")).size, 2 ** 30);

  // A volume with snapshots goes only together with them. Both 1 MiB that it wrote before the snapshot are its clone's too.
  await page.click("button", "Remove");
  await page.waitFor(`document.querySelector("dialog").innerText.includes("2.0 MiB that it shares with others")`);
  await page.fill("[name=confirm]", "web2");
  await page.click("button", "Remove for good");
  await page.waitFor(`document.querySelector("dialog .problem") !== null`);
  await page.click("[name=snapshots]");
  await page.click("button", "Remove for good");
  await page.waitFor(`location.hash === "#/"`);
  await page.see("copy");
  assert.deepEqual(
    (await ullage.listVolumes()).map(({ name }) => name),
    ["copy"],
  );
  assert.equal(await read("copy"), "a");
});

void test("who removes a volume is told what is really lost: not what others need, of a clone not what it began with", async (t) => {
  if (!requireTool(t, "chromium")) return;
  const dashboard = await startDashboard(t);
  const { ullage } = dashboard;
  const write = async (name: string, offset: number, megabytes: number): Promise<void> => {
    const device = await ullage.getDevice(name);
    const buffer = new IoBuffer(megabyte);
    buffer.bytes.fill(7);
    for (let at = 0; at < megabytes; at++) await device.write(offset + at * megabyte, megabyte, buffer, 0);
    await device.flush();
  };
  await ullage.createVolume({ name: "alone", size: 64 * megabyte });
  await ullage.createVolume({ name: "parent", size: 64 * megabyte });
  await ullage.createVolume({ name: "untouched", size: 64 * megabyte });
  await write("alone", 0, 5);
  await write("parent", 0, 8);
  await ullage.createSnapshot("parent", "monday");
  await ullage.createVolume({ name: "clone", from: { snapshot: "parent@monday" } });
  await write("clone", 32 * megabyte, 3);
  assert.equal((await ullage.showVolume("clone")).writtenBytes, 11 * megabyte, "with what it began with");
  const page = await (await Browser.launch(t)).newPage();
  await page.goto(`${dashboard.url}#token=${dashboard.token}`);
  const told = async (name: string): Promise<string> => {
    await page.click(`[aria-label='Remove ${name}']`);
    await page.waitFor(`document.querySelector("dialog [role=status]") !== null`);
    const text = await page.waitFor<string>(
      `(() => { const text = document.querySelector("dialog p").innerText; return text.includes("Looking") ? "" : text; })()`,
    );
    await page.press("Escape");
    await page.waitFor(`document.querySelector("dialog") === null`);
    return text;
  };
  assert.equal(await told("untouched"), "Nothing was written to it yet.");
  assert.equal(await told("alone"), "The 5.0 MiB that it and its snapshots hold are lost. There is no way back.");
  assert.equal(
    await told("clone"),
    "The 3.0 MiB on disk that only it and its snapshots need are lost. There is no way back. Of 8.0 MiB that it shares with others, they keep what they need.",
  );
  assert.match(await told("parent"), /^Nothing on disk is its alone.* Of 8\.0 MiB that it shares/s);
});
