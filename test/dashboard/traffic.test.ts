import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { test } from "node:test";
import { atEnd } from "../daemon/support.ts";
import { requireTool } from "../support/tools.ts";
import { Browser } from "./browser.ts";
import { startDashboard } from "./support.ts";

const megabyte = 2 ** 20;

void test("what a client reads and writes is shown while it does, and so is the client", async (t) => {
  if (!requireTool(t, "chromium", "nbdsh")) return;
  const dashboard = await startDashboard(t);
  const { ullage } = dashboard;
  await ullage.serveNbd([{ kind: "tcp", host: "127.0.0.1", port: 0 }]);
  await ullage.createVolume({ name: "busy", size: 64 * megabyte });
  await ullage.createVolume({ name: "idle", size: 64 * megabyte });
  const page = await (await Browser.launch(t)).newPage();
  await page.goto(`${dashboard.url}#token=${dashboard.token}`);
  await page.see("idle");

  const { uri } = ullage.health().listeners[0];
  const steps = [
    "import time",
    "data = b'x' * 65536",
    "while True:",
    "  h.pwrite(data, 1048576)",
    "  h.pread(65536, 1048576)",
    "  time.sleep(0.02)",
  ];
  const client = spawn("nbdsh", ["-u", `${uri}busy`, "-c", steps.join("\n")], { stdio: "ignore" });
  const ended = once(client, "exit");
  atEnd(t, async () => {
    client.kill("SIGKILL");
    await ended;
  });

  const row = (name: string): string =>
    `[...document.querySelectorAll("tbody tr")].find((each) => each.querySelector("a").textContent === "${name}")`;
  await page.waitFor(`/[1-9]\\S* [KM]iB\\/s[\\s]*[1-9]\\d* IOPS/.test(${row("busy")}.innerText)`);
  assert.match(await page.evaluate(`${row("idle")}.querySelector(".cell-traffic").innerText`), /^–$|^0 B\/s/);

  await page.click("a", "busy");
  await page.see("reads and writes");
  await page.waitFor(`/[1-9]\\S* [KM]iB\\/s\\s+Writing|Writing\\s+[1-9]/.test(document.body.innerText)`);
  await page.waitFor(`document.querySelector(".legend").innerText.includes("written here")`);

  // Removing it needs its client gone: the page offers that, and says so when it is not wanted.
  await page.click("button", "Remove");
  await page.fill("[name=confirm]", "busy");
  await page.click("button", "Remove for good");
  await page.waitFor(`document.querySelector("dialog .problem")?.innerText.includes("409 in-use")`);
  await page.click("[name=force]");
  await page.click("button", "Remove for good");
  await page.waitFor(`location.hash === "#/"`);
  await page.unsee("busy");
  await ended;
  // The browser notes what was refused, and whoever asks just as the volume goes is told that it is gone.
  assert.deepEqual(
    page.problems.filter((problem) => !/status of (409|404)/.test(problem)),
    [],
  );
});
