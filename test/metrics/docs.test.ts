import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { families } from "../../src/metrics/metrics.ts";
import { temporaryDirectory } from "../daemon/support.ts";
import { nbdsh } from "../nbd/support.ts";
import { startHttpSource } from "../support/http-source.ts";
import { requireTool } from "../support/tools.ts";
import { type Scrape, serveMeasured } from "./support.ts";

const docs = join(import.meta.dirname, "../../docs");

interface Row {
  type: string;
  labels: string[];
  meaning: string;
}

/** The tables of METRICS.md, by name. */
async function documented(): Promise<Map<string, Row>> {
  const rows = new Map<string, Row>();
  for (const line of (await readFile(join(docs, "METRICS.md"), "utf8")).split("\n")) {
    const [, name, type, labels, meaning] = line.split("|").map((cell) => cell.trim());
    if (!/^`ullage_\w+`$/.test(name ?? "")) continue;
    assert.ok(!rows.has(name), `${name} has one row`);
    rows.set(name.slice(1, -1), { type, labels: [...labels.matchAll(/`(\w+)`/g)].map((match) => match[1]), meaning });
  }
  return rows;
}

/** Everything there is to count has happened at least once. */
async function eventfulScrape(t: TestContext): Promise<Scrape> {
  const served = await serveMeasured(t);
  await using source = await startHttpSource({ content: randomBytes(4 * 1024 * 1024) });
  await served.ullage.createVolume({ name: "v", from: { source: source.url }, settings: { hydrate: "off" } });
  source.inject({ kind: "status", status: 503 });
  await nbdsh(`h.set_strict_mode(0)
h.connect_uri("${served.uri("v")}")
h.pread(4096, 1 << 20)
h.pread(4096, 1 << 20)
h.pwrite(b"x" * 4096, 0)
h.trim(4096, 0)
h.zero(4096, 0)
h.flush()
h.cache(4096, 0)
try: h.pread(512, 1 << 40)
except nbd.Error: pass`);
  await served.ullage.createSnapshot("v", "s");
  const reader = { address: "test", remote: false };
  const content = await served.ullage.openContent("v", undefined, "raw", reader);
  await content.read(0, 512, new IoBuffer(512), 0);
  await content.close();
  source.onRequest = () => ({ kind: "status", status: 404 });
  await nbdsh(`h.connect_uri("${served.uri("v")}")
try: h.pread(4096, 3 << 20)
except nbd.Error: pass`);
  await served.scrape();
  return await served.scrape();
}

interface Dashboard {
  annotations: { list: { expr?: string }[] };
  templating: { list: { query: string | { query: string } }[] };
  panels: { id: number; title: string; gridPos: object; targets?: { expr: string }[] }[];
}

async function readDashboard(): Promise<Dashboard> {
  return JSON.parse(await readFile(join(docs, "grafana-dashboard.json"), "utf8")) as Dashboard;
}

function expressions({ panels, annotations }: Dashboard): string[] {
  const inPanels = panels.flatMap(({ targets = [] }) => targets.map(({ expr }) => expr));
  return [...inPanels, ...annotations.list.flatMap(({ expr }) => expr ?? [])];
}

/** @returns what promtool does not like about a file of rules */
async function ruleErrors(t: TestContext, yaml: string): Promise<string> {
  const path = join(await temporaryDirectory(t), "rules.yml");
  await writeFile(path, yaml);
  const { status, stdout, stderr } = spawnSync("promtool", ["check", "rules", path], {
    encoding: "utf8",
    timeout: 60_000,
  });
  return status === 0 ? "" : stdout + stderr;
}

void test("METRICS.md has a row for every metric that is served, and for no other: type, labels and meaning agree", async (t) => {
  if (!requireTool(t, "nbdsh")) return;
  const rows = await documented();
  const scrape = await eventfulScrape(t);
  assert.deepEqual([...scrape.types.keys()].sort(), [...rows.keys()].sort());
  for (const [name, { type, labels, meaning }] of rows) {
    assert.equal(scrape.types.get(name), type, name);
    assert.equal(scrape.helps.get(name), meaning, name);
    assert.deepEqual([...scrape.labelsOf(name)].sort(), [...labels].sort(), name);
  }
  for (const { name, labels } of families) assert.deepEqual(rows.get(name)?.labels, labels, name);
});

void test("the dashboard asks for documented metrics only, all of which are served, and in valid PromQL", async (t) => {
  if (!requireTool(t, "nbdsh", "promtool")) return;
  const dashboard = await readDashboard();
  const rows = await documented();
  const scrape = await eventfulScrape(t);
  const queries = dashboard.templating.list.map(({ query }) => (typeof query === "string" ? query : query.query));
  const served = new Set([...scrape.values.keys()].map((series) => series.split("{")[0]));
  let names = 0;
  for (const [name] of [...expressions(dashboard), ...queries].join("\n").matchAll(/ullage_\w+/g)) {
    names++;
    const family = rows.has(name) ? name : name.replace(/_(bucket|sum|count)$/, "");
    assert.ok(rows.has(family), `${name} is not in METRICS.md`);
    assert.ok(served.has(name), `${name} is not served`);
  }
  assert.ok(names > 40);
  const rules = expressions(dashboard).map((expr, index) => ({
    record: `panel:${index}`,
    expr: expr.replaceAll("$__rate_interval", "5m"),
  }));
  assert.equal(await ruleErrors(t, JSON.stringify({ groups: [{ name: "dashboard", rules }] })), "");
  const ids = dashboard.panels.map(({ id }) => id);
  assert.equal(new Set(ids).size, ids.length);
  assert.equal(new Set(dashboard.panels.map(({ gridPos }) => JSON.stringify(gridPos))).size, ids.length);
});

void test("the alerts of METRICS.md are accepted by promtool and ask for documented metrics", async (t) => {
  if (!requireTool(t, "promtool")) return;
  const text = await readFile(join(docs, "METRICS.md"), "utf8");
  const alerts = /```yaml\n(groups:[^]*?)```/.exec(text)![1];
  assert.equal(await ruleErrors(t, alerts), "");
  const rows = await documented();
  const names = [...alerts.matchAll(/\bullage_\w+/g)].map(([name]) => name);
  assert.deepEqual(
    names.filter((name) => !rows.has(name)),
    [],
  );
  assert.notEqual(await ruleErrors(t, "groups: [{name: a, rules: [{record: b, expr: 'rate('}]}]"), "");
});
