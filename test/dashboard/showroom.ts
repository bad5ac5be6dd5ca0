import type { TestContext } from "node:test";
import {
  answerCache,
  answerVolumes,
  cachePaths,
  fakeBlob,
  fakeVolume,
  startFakeApi,
  type FakeApi,
} from "./fake-api.ts";

/* A server with one of everything, always the same: for pictures, and for looking at. */

const gigabyte = 2 ** 30;

/** The runs of a disk: a boot area and files written here, layers below, some of the image local, the rest not yet. */
function exampleMap(size: number): object[] {
  const unit = 4 * 2 ** 20;
  let state = 12_345;
  const random = (): number => (state = (state * 1_103_515_245 + 12_345) % 2 ** 31) / 2 ** 31;
  const runs: object[] = [];
  let offset = 0;
  while (offset < size) {
    const length = Math.min(size - offset, unit * (1 + Math.floor(random() ** 3 * 60)));
    const place = offset / size;
    const chance = random();
    let run: [string, string | null] = ["remote", "b10b".repeat(8)];
    if (place < 0.02 || chance < 0.1) run = ["written", "1a7e".repeat(8)];
    else if (chance < 0.2 && place < 0.6) run = ["written", "0ldd".repeat(8)];
    else if (chance < 0.24 && place < 0.5) run = ["written", "c0de".repeat(8)];
    else if (chance > 0.9 || place > 0.86) run = ["zero", null];
    else if (place < 0.47 + 0.1 * random()) run = ["local", "b10b".repeat(8)];
    const [kind, owner] = run;
    runs.push({ offset, length, kind, owner });
    offset += length;
  }
  return runs;
}

const volumes = [
  fakeVolume("web-frontend", {
    size: 20 * gigabyte,
    source: "https://cloud.debian.org/images/cloud/trixie/latest/debian-13-generic-amd64.raw",
    blob: "b10b",
    connections: 2,
    writtenBytes: 3.4 * gigabyte,
    fetchedBytes: 7.9 * gigabyte,
    hydration: {
      state: "running",
      reason: null,
      readyBytes: 7.9 * gigabyte,
      totalBytes: 17.2 * gigabyte,
      damagedBytes: 0,
      damaged: [],
      rateBytesPerSecond: 84 * 2 ** 20,
      etaSeconds: 113,
      limitBytesPerSecond: 100 * 2 ** 20,
      priority: 10,
    },
  }),
  fakeVolume("scratch", {
    source:
      "oci://registry.example.org/team/scratch@sha256:5d20c808ce198565ff70b3ed23a991dd49afac45dece63474b27ce6ed036adc6",
    pinned: false,
    blob: "5c4a",
    settings: { ...fakeVolume("x").settings, hydrate: "off", cache: "none" },
    hydration: { ...fakeVolume("x").hydration, state: "none", readyBytes: 0, totalBytes: 0 },
    fetchedBytes: 0,
  }),
  fakeVolume("build-cache", {
    source: null,
    format: null,
    size: 500 * gigabyte,
    writtenBytes: 122 * gigabyte,
    hydration: { ...fakeVolume("x").hydration, state: "none", readyBytes: 0, totalBytes: 0 },
    fetchedBytes: 0,
  }),
  fakeVolume("ci-runner-template-with-a-rather-long-name.2026-11", {
    origin: { volume: "web-frontend", snapshot: "before-upgrade", removed: false },
    hydration: { ...fakeVolume("x").hydration, state: "paused" },
  }),
  fakeVolume("ci-runner-7", {
    origin: { volume: "ci-runner-template-with-a-rather-long-name.2026-11", snapshot: null, removed: false },
  }),
  fakeVolume("web-canary", { origin: { volume: "web-frontend", snapshot: "nightly-2026-11-19", removed: false } }),
  fakeVolume("database", {
    size: 2048 * gigabyte,
    connections: 1,
    hydration: { ...fakeVolume("x").hydration, state: "detached" },
  }),
  fakeVolume("mail", { state: "degraded", reason: "its source answers 503", connections: 1 }),
  fakeVolume("old-laptop", {
    state: "lostUnflushed",
    reason: "a power cut lost writes that were acknowledged",
    hydration: { ...fakeVolume("x").hydration, state: "waiting", reason: "no space is left" },
  }),
].sort((a, b) => (a.name < b.name ? -1 : 1));

const snapshots = ["nightly-2026-11-18", "nightly-2026-11-19", "before-upgrade"].map((name, index) => ({
  id: name,
  name,
  volume: "web-frontend",
  size: 20 * gigabyte,
  createdAt: new Date(Date.UTC(2026, 10, 18 + index, 2, 30)).toISOString(),
}));

const connections = [
  { protocol: "nbd", address: "192.0.2.17:51234", remote: true, writable: true },
  { protocol: "nbd", address: "unix", remote: false, writable: false },
];

const exports = [
  {
    name: "lab",
    volume: "web-frontend",
    snapshot: "before-upgrade",
    readOnly: true,
    description: null,
    implicit: false,
  },
];

const debian = "https://cloud.debian.org/images/cloud/trixie/latest/debian-13-generic-amd64.raw";

const blobs = [
  fakeBlob("b10b", {
    source: debian,
    image: "debian",
    identity: '"c0000000-66f1a2b3c4d5e"',
    size: 17.2 * gigabyte,
    readyBytes: 7.9 * gigabyte,
    diskBytes: 7.9 * gigabyte,
    volumes: ["web-canary", "web-frontend", "ci-runner-7", "ci-runner-template-with-a-rather-long-name.2026-11"],
    detached: ["web-canary"],
    kept: true,
    createdAt: "2026-11-19T03:04:05.000Z",
  }),
  fakeBlob("01db", { source: debian, image: "debian", identity: '"bffff000-61c0ffee"', readyBytes: 4 * gigabyte }),
  fakeBlob("database", {
    volumes: ["database"],
    readyBytes: 4 * gigabyte,
    identity: "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    verified: true,
    sourceState: { state: "notNeeded", reason: null },
  }),
  fakeBlob("5c4a", { pinned: false, cache: "none", diskBytes: 0, readyBytes: 2 ** 26, volumes: ["scratch"] }),
  fakeBlob("lab", {
    source: "http://192.0.2.9:8080/lab.tar.gz",
    format: "gzip+tar+qcow2",
    identity: null,
    pinned: false,
    sourceState: { state: "notAsked", reason: null },
  }),
  fakeBlob("mail", { volumes: ["mail"], sourceState: { state: "failing", reason: "the source answers 503" } }),
];

const jobs = [
  {
    id: "j1",
    kind: "image-pull",
    target: "oci://registry.example.org/team/debian:12",
    state: "running",
    progress: { done: 1.3 * gigabyte, total: 3 * gigabyte, unit: "bytes" },
  },
];

export async function showroom(t: TestContext): Promise<FakeApi> {
  const runs = exampleMap(20 * gigabyte);
  const paths = {
    "/v1/traffic": ["GET"],
    "/v1/snapshots": ["GET"],
    "/v1/volumes/{name}/exports": ["GET"],
    "/v1/volumes/{name}/snapshots": ["POST"],
    "/v1/volumes/{name}/revert": ["POST"],
    "/v1/volumes/{name}/space": ["GET"],
    ...cachePaths,
  };
  const started = Date.now();
  return startFakeApi(t, paths, (request) => {
    const { path, query } = request;
    if (path === "/v1/traffic") {
      const seconds = (Date.now() - started) / 1000;
      const at = (name: string, mebibytes: number): object => ({
        name,
        readBytes: seconds * mebibytes * 2 ** 20,
        writtenBytes: (seconds * mebibytes * 2 ** 20) / 4,
        requests: seconds * mebibytes * 40,
      });
      return { traffic: [at("web-frontend", 112), at("database", 418), at("mail", 0.2)] };
    }
    if (path === "/v1/snapshots") {
      return { snapshots: query.get("volume") === "web-frontend" ? snapshots : [], next: null };
    }
    if (path === "/v1/volumes/web-frontend/connections") return { connections, next: null };
    if (path === "/v1/volumes/web-frontend/exports") return { exports, next: null };
    if (path.endsWith("/exports")) return { exports: [], next: null };
    if (path.endsWith("/map")) return { runs, next: null };
    if (path === "/v1/blobs/b10b") return blobs[0];
    if (path === "/v1/blobs/5c4a") return blobs.find(({ id }) => id === "5c4a");
    if (path.endsWith("/space")) {
      return { exclusiveBytes: 2.1 * gigabyte, sharedBytes: 1.3 * gigabyte, cachedBytes: 7.9 * gigabyte };
    }
    return answerCache(blobs, jobs, request) ?? answerVolumes(volumes, request);
  });
}
