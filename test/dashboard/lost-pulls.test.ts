import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import type { JobObject } from "../../src/api/job-object.ts";
import type { BlobView } from "../../src/daemon/views.ts";
import { launchDaemon, type Daemon } from "../cli/support.ts";
import { temporaryDirectory } from "../daemon/support.ts";
import { freePort } from "../sources/processes.ts";
import { type HttpSource, startHttpSource } from "../support/http-source.ts";
import { requireTool } from "../support/tools.ts";
import { Browser, type Page } from "./browser.ts";
import { answerCache, cachePaths, startFakeApi } from "./fake-api.ts";

/* What the page does whose daemon is killed, or restarted, while it fetches what the page asked for. */

const MiB = 2 ** 20;
const content = randomBytes(16 * MiB);
const patience = { timeout: 150_000 };

interface World {
  url: string;
  now: Daemon;
  page: Page;
  restart(this: void, signal: NodeJS.Signals): Promise<void>;
}

/** A source whose downloads are under way for as long as a test needs them to be: some of it comes, the rest is waited for. */
async function startHeldSource(): Promise<HttpSource> {
  const source = await startHttpSource({ content });
  source.onRequest = ({ start }) => (start >= 4 * MiB ? { kind: "stall" } : undefined);
  return source;
}

async function startWorld(t: TestContext): Promise<World> {
  const directory = await temporaryDirectory(t);
  const [data, config] = ["data", "ullage.toml"].map((name) => join(directory, name));
  await writeFile(config, '[sources]\nallow = ["any"]\n');
  const address = `127.0.0.1:${await freePort()}`;
  const more = ["--config", config, "--api", `unix:${data}/api.sock`, address, "--api-auth", "off"];
  const start = (): Promise<Daemon> => launchDaemon(t, data, more);
  const now = await start();
  const page = await (await Browser.launch(t)).newPage();
  const world: World = {
    url: `http://${address}`,
    now,
    page,
    restart: async (signal) => {
      await world.now.stop(signal);
      await page.waitFor(`document.querySelector(".top .chip").textContent === "offline"`);
      world.now = await start();
    },
  };
  await page.goto(`${world.url}/#/images`);
  await page.see("There are no images in the cache");
  return world;
}

async function pull(page: Page, source: string): Promise<void> {
  await page.click("button", "Pull image");
  await page.fill("[name=source]", source);
  await page.click("button.primary", "Pull");
}

const jobs = async ({ url }: World): Promise<JobObject[]> =>
  ((await (await fetch(`${url}/v1/jobs`)).json()) as { jobs: JobObject[] }).jobs;

/** Waits for a job that has got somewhere. */
async function underWay(world: World, source: string): Promise<void> {
  for (let n = 0; ; n++) {
    const found = (await jobs(world)).find(({ target }) => target === source);
    if (found !== undefined && found.progress.done > 0) return;
    assert.ok(n < 1000, "it does not begin");
    await sleep(20);
  }
}

for (const signal of ["SIGKILL", "SIGTERM"] as const) {
  void test(
    `a pull goes on after ${signal} and a restart of the daemon; what others asked for is left to them`,
    patience,
    async (t) => {
      if (!requireTool(t, "chromium")) return;
      await using source = await startHeldSource();
      await using other = await startHeldSource();
      const world = await startWorld(t);
      const { page, url } = world;
      await pull(page, source.url);
      await page.see("Being fetched");
      const headers = { "content-type": "application/json" };
      const body = JSON.stringify({ source: other.url });
      assert.equal((await fetch(`${url}/v1/images`, { method: "POST", headers, body })).status, 202);
      await underWay(world, source.url);
      // Who looks at something else gets it as well.
      if (signal === "SIGTERM") await page.evaluate(`location.hash = "#/volumes"`);
      source.onRequest = undefined; // for the next daemon
      await world.restart(signal);
      await underWay(world, source.url);
      await page.evaluate(`location.hash = "#/images"`);
      await page.waitFor(`[...document.querySelectorAll("tbody tr")].some((row) =>
      row.innerText.includes(${JSON.stringify(source.url)}) && row.innerText.includes("complete"))`);
      const done = await jobs(world);
      assert.deepEqual(
        done.map(({ target, state }) => [target, state]),
        [[source.url, "done"]],
      );
      const { blobs } = await world.now.json<{ blobs: BlobView[] }>(["cache", "ls"]);
      assert.equal(blobs.find((each) => each.source === source.url)?.readyBytes, content.length);
      assert.equal(await page.evaluate(`document.querySelector(".background-problems")`), null);

      // It is not asked for again once it is done.
      await world.restart(signal);
      await page.waitFor(`document.querySelector(".top .chip").textContent !== "offline"`);
      other.onRequest = undefined;
      await pull(page, other.url);
      await underWay(world, other.url);
      assert.deepEqual(
        (await jobs(world)).map(({ target }) => target),
        [other.url],
      );
    },
  );
}

void test(
  "a pull whose daemon is killed before it answers is asked for again, and the dialog waits for it",
  patience,
  async (t) => {
    if (!requireTool(t, "chromium")) return;
    await using source = await startHttpSource({ content });
    const world = await startWorld(t);
    const { page } = world;
    source.inject({ kind: "stall" });
    await pull(page, source.url);
    for (let n = 0; source.requestCount === 0; n++) {
      assert.ok(n < 1000, "the source is not asked");
      await sleep(20);
    }
    await world.now.stop("SIGKILL");
    await page.waitFor(`document.querySelector(".top .chip").textContent === "offline"`);
    assert.equal(
      await page.evaluate(`document.querySelector("dialog button.primary").textContent.trim()`),
      "Asking the source…",
    );
    await world.restart("SIGKILL");
    await page.waitFor(`document.querySelector("dialog") === null`);
    await page.see("complete");
    assert.equal((await jobs(world)).length, 1);
  },
);

void test("a pull that is refused when it is asked for again is told", patience, async (t) => {
  if (!requireTool(t, "chromium")) return;
  await using source = await startHeldSource();
  const world = await startWorld(t);
  const { page } = world;
  await pull(page, source.url);
  await underWay(world, source.url);
  source.onRequest = () => ({ kind: "status", status: 404 });
  await world.restart("SIGKILL");
  await page.waitFor(`document.querySelector(".background-problems")?.innerText.includes("could not be fetched")`);
  await page.unsee("Being fetched");
  assert.deepEqual(await jobs(world), []);
});

void test(
  "a pull that ends because its daemon stops is no failure, and is asked for again; five times at most",
  patience,
  async (t) => {
    if (!requireTool(t, "chromium")) return;
    const source = "https://example.org/a.raw";
    const stopping = { status: 503, code: "stopping", detail: "Ullage is being stopped" };
    let asked = 0;
    let now: object[] = [];
    const { url } = await startFakeApi(t, cachePaths, async (request) => {
      if (request.method !== "POST" || request.path !== "/v1/images") return answerCache([], now, request);
      assert.deepEqual(request.body, { source });
      const progress = { done: 0, total: 2 ** 30, unit: "bytes" };
      const body = { id: `j${++asked}`, kind: "image-pull", target: source, state: "running", progress };
      // The first is told to have failed, the second is found to, the others are not known any more.
      now = [[], [body], [{ ...body, state: "failed", error: stopping }]][asked] ?? [];
      await sleep(100); // meanwhile there are more resets
      return { status: 202, body };
    });
    const page = await (await Browser.launch(t)).newPage();
    await page.goto(`${url}#/images`);
    await page.see("There are no images in the cache");
    await pull(page, source);
    const tell = (type: string, data: object): Promise<unknown> =>
      page.evaluate(`void import("./dashboard/events.js").then(({ tell }) => tell(${JSON.stringify({ type, data })}))`);
    await page.waitFor(`document.querySelector("dialog") === null`);
    await tell("job", { id: "j1", kind: "image-pull", target: source, state: "failed", error: stopping });
    now = [];
    const problems = `[...document.querySelectorAll(".background-problems .problem")].map((each) => each.innerText)`;
    let told: string[] = [];
    for (let n = 0; told.length === 0; n++) {
      assert.ok(n < 500, `asked ${asked} times`);
      await tell("reset", {}); // as each daemon would
      await sleep(40);
      told = await page.evaluate<string[]>(problems);
    }
    assert.equal(told.length, 1);
    assert.match(told[0], /daemon ended 6 times/);
    assert.equal(asked, 6);
  },
);
