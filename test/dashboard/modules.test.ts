import assert from "node:assert/strict";
import { test } from "node:test";

/* What the page computes, without a page. The modules are JavaScript, checked by their own tsconfig. */

const load = (name: string): Promise<any> =>
  import(new URL(`../../src/dashboard/public/${name}.js`, import.meta.url).href);

void test("sizes are read as the command line reads them, and shown so that they can be typed again", async () => {
  const { parseSize, exactSize, formatBytes } = await load("format");
  const sizes: [string, number | undefined][] = [
    ["512", 512],
    ["64k", 65_536],
    ["10M", 10 * 2 ** 20],
    ["1.5G", 1.5 * 2 ** 30],
    ["2 TiB", 2 * 2 ** 40],
    ["", undefined],
    ["-1", undefined],
    ["1e3", undefined],
    ["10X", undefined],
    ["1.3", undefined],
    ["99999P", undefined],
  ];
  for (const [text, bytes] of sizes) assert.equal(parseSize(text), bytes, text);
  for (const bytes of [0, 1000, 1024, 65_536, 3 * 2 ** 30]) assert.equal(parseSize(exactSize(bytes)), bytes);
  assert.deepEqual([0, 1023, 1024, 1536, 2 ** 30, 1000 * 2 ** 40].map(formatBytes), [
    "0 B",
    "1023 B",
    "1 KiB",
    "1.5 KiB",
    "1 GiB",
    "1000 TiB",
  ]);
});

void test("a share is 0 % or 100 % only when it is", async () => {
  const { formatShare } = await load("format");
  assert.deepEqual(
    [
      [0, 0],
      [0, 9],
      [1, 1e6],
      [1, 3],
      [999, 1000],
      [999_999, 1e6],
      [5, 5],
    ].map(([part, whole]) => formatShare(part, whole)),
    ["0 %", "0 %", "< 0.1 %", "33 %", "99 %", "> 99.9 %", "100 %"],
  );
});

void test("a map's cells add up to the disk, whatever the runs' borders", async () => {
  const { MapGrid } = await load("map-grid");
  const size = 10 * 2 ** 20 + 512;
  const grid = new MapGrid(size, 100);
  assert.equal(grid.cellBytes, 128 * 1024);
  let offset = 0;
  for (let index = 0; offset < size; index++) {
    const length = Math.min(size - offset, 4096 * (1 + ((index * 7) % 60)));
    const kind = ["zero", "remote", "local", "written"][index % 4];
    grid.add({ offset, length, kind, owner: kind === "zero" ? null : `${kind}${index % 3}` });
    offset += length;
  }
  for (let cell = 0; cell < grid.count; cell++) {
    const sum = grid.describe(cell).reduce((total: number, { bytes }: { bytes: number }) => total + bytes, 0);
    assert.equal(sum, grid.bytesIn(cell), `cell ${cell}`);
  }
  const total = ["zero", "remote", "local", "written"].reduce((sum, kind) => sum + grid.total(kind), 0);
  assert.equal(total, size);
});

void test("a map with more pieces than can be read is drawn from samples, in a bounded number of requests", async () => {
  const { readMap } = await load("map-grid");
  const size = 2 ** 40;
  let requests = 0;
  const read = (offset: number, limit: number): Promise<object> => {
    requests++;
    const runs = [];
    for (let at = offset; runs.length < limit && at < size; at += 4096) {
      runs.push({ offset: at, length: 4096, kind: (at / 4096) % 4 === 0 ? "written" : "zero", owner: null });
    }
    const last = runs.at(-1)!;
    return Promise.resolve({ runs, next: last.offset + 4096 < size ? last.offset + 4096 : null });
  };
  const grid = await readMap(size, 2000, read);
  assert.equal(grid.sampled, true);
  assert.ok(requests < 300, `${requests} requests`);
  assert.ok(Math.abs(grid.total("written") / size - 0.25) < 0.01);
  assert.ok(Math.abs(grid.total("written") + grid.total("zero") - size) < 4096);
});

void test("all cells of a map fit the place that they are given", async () => {
  const { cellsThatFit, layOut } = await load("map-drawing");
  const { MapGrid } = await load("map-grid");
  for (const width of [200, 320, 800, 1240]) {
    for (const size of [512, 2 ** 20, 10 * 2 ** 30 + 512, 16 * 2 ** 40]) {
      const { count } = new MapGrid(size, cellsThatFit(width));
      const { pitch, columns, height } = layOut(count, width);
      assert.ok(columns * pitch <= width && height <= 300, `${width} ${size}: ${columns} of ${pitch}, ${height} high`);
      assert.ok(columns * Math.floor(height / pitch) >= count);
    }
  }
});

void test("layers that a volume's bytes are in have colours of their own", async () => {
  const { colourOf } = await load("map-drawing");
  const sorts = [
    { kind: "written", owner: "a" },
    { kind: "local", owner: "b" },
    { kind: "written", owner: "c" },
    { kind: "zero", owner: null },
    ...Array.from({ length: 9 }, (_, index) => ({ kind: "written", owner: `older${index}` })),
  ];
  const colours = sorts.map((sort) => colourOf(sorts, sort));
  assert.deepEqual(colours.slice(0, 4), ["written-1", "local-1", "written-2", "zero"]);
  assert.deepEqual([colours.at(-2), colours.at(-1)], ["written-6", "written-6"]);
});

void test("events are read from pieces of any size", async () => {
  const { parseEvents } = await load("events");
  const stream =
    ': hello\n\nid: 1\nevent: volume\ndata: {"name":"a",\ndata: "x":1}\n\ndata: 2\r\n\r\nevent: bad\ndata: {\n\n';
  let rest = "";
  const events = [];
  for (const piece of stream.match(/[\s\S]{1,3}/g)!) {
    const parsed = parseEvents(rest + piece);
    rest = parsed.rest;
    events.push(...parsed.events);
  }
  assert.deepEqual(events, [
    { type: "volume", id: "1", data: { name: "a", x: 1 } },
    { type: "message", id: undefined, data: 2 },
  ]);
});

void test("connect strings name the export on every NBD listener, quoted for a shell", async () => {
  const { waysTo } = await load("connect");
  const ways = waysTo(
    [
      { protocol: "api", address: "127.0.0.1:7070", uri: null },
      { protocol: "nbd", address: "127.0.0.1:10809", uri: "nbd://127.0.0.1:10809/" },
      { protocol: "nbd", address: "0.0.0.0:10810", uri: "nbds://0.0.0.0:10810/" },
      { protocol: "nbd", address: "unix:/run/a b.sock", uri: "nbd+unix:///?socket=/run/a%20b.sock" },
    ],
    "web1",
    "example.org",
  );
  assert.deepEqual(
    ways.map(({ uri }: { uri: string }) => uri),
    ["nbd://127.0.0.1:10809/web1", "nbds://example.org:10810/web1", "nbd+unix:///web1?socket=/run/a%20b.sock"],
  );
  const lines = ways.map(({ commands }: { commands: { line: string }[] }) => commands.map(({ line }) => line));
  assert.equal(lines[0][1], "nbdcopy nbd://127.0.0.1:10809/web1 web1.raw");
  assert.equal(lines[1][3], "nbd-client example.org 10810 /dev/nbd0 -name web1");
  assert.equal(lines[2][0], "nbdinfo 'nbd+unix:///web1?socket=/run/a%20b.sock'");
  assert.equal(lines[2][3], "nbd-client -unix '/run/a b.sock' /dev/nbd0 -name web1");
});

void test("rates are differences of counters; a restarted server has none yet", async () => {
  const { ratesBetween } = await load("rates");
  const at = (name: string, requests: number, readBytes: number, writtenBytes: number): object => ({
    name,
    requests,
    readBytes,
    writtenBytes,
  });
  const rates = ratesBetween(
    [at("a", 100, 4096, 0), at("b", 500, 0, 0)],
    [at("a", 300, 12_288, 2048), at("b", 3, 0, 0), at("c", 9, 9, 9)],
    2,
  );
  assert.deepEqual(
    [...rates],
    [["a", { readPerSecond: 4096, writtenPerSecond: 1024, bytesPerSecond: 5120, requestsPerSecond: 100 }]],
  );
});

void test("a form says what is wrong before it is sent", async () => {
  const { createRequest } = await load("create-dialog");
  const typed = {
    name: "web1",
    kind: "image",
    source: "https://example.org/a.raw",
    origin: "",
    size: "",
    format: "",
    download: false,
    unpinned: false,
    allowBacking: false,
    hydrate: true,
    cache: "",
  };
  const from = { source: "https://example.org/a.raw" };
  // What is as always is left to the server, which may be configured otherwise.
  assert.deepEqual(createRequest(typed), { name: "web1", from });
  const changed = (change: object): object => createRequest({ ...typed, ...change }).settings;
  assert.deepEqual(changed({ hydrate: false }), { hydrate: "off" });
  assert.deepEqual(changed({ cache: "none" }), { cache: "none" });
  assert.deepEqual(changed({ cache: "shared", hydrate: false }), { cache: "shared", hydrate: "off" });
  assert.deepEqual(createRequest({ ...typed, unpinned: true, allowBacking: true }).from, {
    ...from,
    unpinned: true,
    allowBacking: true,
  });
  assert.deepEqual(createRequest({ ...typed, kind: "empty", size: "1G" }), { name: "web1", size: 2 ** 30 });
  assert.deepEqual(createRequest({ ...typed, kind: "clone", origin: "a@b" }), {
    name: "web1",
    from: { snapshot: "a@b" },
  });
  for (const wrong of [
    { name: "" },
    { name: "-a" },
    { name: "a b" },
    { source: "" },
    { source: "relative/path" },
    { size: "big" },
    { kind: "empty" },
    { kind: "clone" },
  ]) {
    assert.throws(() => createRequest({ ...typed, ...wrong }), { code: "not-sent" }, JSON.stringify(wrong));
  }
});

void test("names survive the address bar", async () => {
  const { parsePlace, volumeLink } = await load("router");
  for (const name of ["web1", "a.b-c_d", "100%", "ü/x"]) {
    assert.deepEqual(parsePlace(volumeLink(name)), { page: "volume", name });
  }
  for (const fragment of ["", "#", "#/"]) assert.deepEqual(parsePlace(fragment), { page: "volumes" });
  for (const fragment of ["#/volumes/", "#/nowhere", "#/volumes/%E0%A4%A"]) {
    assert.deepEqual(parsePlace(fragment), { page: "unknown" }, fragment);
  }
});
