import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import type { TestContext } from "node:test";
import { readStaticFiles } from "../../src/dashboard/static-files.ts";
import { atEnd } from "../daemon/support.ts";

/*
 * A server that the dashboard takes for a daemon: for sights that a real one shows only after much work, or never the same
 * twice (a thousand volumes, maps of many layers, figures that stand still for a picture).
 */

export interface FakeRequest {
  method: string;
  path: string;
  query: URLSearchParams;
  body: any;
}

/** What is answered: an object (200), a status with an object, or undefined for 404. */
export type FakeAnswer = { status: number; body?: object } | object | undefined;

export interface FakeApi {
  url: string;
  requests: FakeRequest[];
}

export const health = {
  status: "ok",
  checks: [],
  warnings: [] as { code: string; message: string }[],
  version: "0.1.0",
  pid: 1,
  dataDirectory: "/srv/ullage",
  listeners: [
    { protocol: "nbd", address: "127.0.0.1:10809", uri: "nbd://127.0.0.1:10809/" },
    { protocol: "nbd", address: "unix:/srv/ullage/nbd.sock", uri: "nbd+unix:///?socket=/srv/ullage/nbd.sock" },
  ],
};

export function fakeVolume(name: string, more: object = {}): any {
  return {
    id: name,
    name,
    size: 10 * 2 ** 30,
    state: "ok",
    reason: null,
    source: `https://images.example.org/${name}.raw`,
    pinned: true,
    blob: null,
    format: "raw",
    fetchedBytes: 2 ** 30,
    writtenBytes: 2 ** 28,
    hydration: {
      state: "running",
      reason: null,
      readyBytes: 2 ** 30,
      totalBytes: 4 * 2 ** 30,
      damagedBytes: 0,
      damaged: [],
      rateBytesPerSecond: 50 * 2 ** 20,
      etaSeconds: 61,
      limitBytesPerSecond: null,
      priority: 0,
    },
    settings: { hydrate: "auto", sync: "normal", remoteAfterPowerLoss: "refuse", cache: "shared" },
    connections: 0,
    createdAt: "2026-01-02T03:04:05.000Z",
    ...more,
  };
}

export function fakeBlob(id: string, more: object = {}): any {
  return {
    id,
    image: id,
    source: `https://images.example.org/${id}.raw`,
    format: "raw",
    identity: `"${id}-66f1"`,
    pinned: true,
    verified: null,
    cache: "shared",
    size: 4 * 2 ** 30,
    unitBytes: 2 ** 20,
    readyBytes: 2 ** 30,
    diskBytes: 2 ** 30,
    foregroundBytes: 0,
    readaheadBytes: 0,
    backgroundBytes: 2 ** 30,
    users: 0,
    volumes: [],
    detached: [],
    kept: false,
    usedAt: "2026-01-02T03:04:05.000Z",
    sourceState: { state: "ok", reason: null, at: null },
    createdAt: "2026-01-02T03:04:05.000Z",
    ...more,
  };
}

/** What the OpenAPI document has of a cache. */
export const cachePaths = {
  "/v1/cache": ["GET"],
  "/v1/cache/evict": ["POST"],
  "/v1/blobs": ["GET"],
  "/v1/blobs/{id}": ["GET"],
  "/v1/blobs/{id}/pin": ["POST", "DELETE"],
  "/v1/images": ["GET", "POST"],
  "/v1/jobs": ["GET"],
  "/v1/jobs/{id}": ["DELETE"],
};

/** Answers GET /v1/cache, /v1/jobs and /v1/blobs in pages. */
export function answerCache(blobs: readonly any[], jobs: readonly object[], request: FakeRequest): FakeAnswer {
  const { method, path, query } = request;
  if (method !== "GET") return undefined;
  if (path === "/v1/jobs") return { jobs, next: null };
  if (path === "/v1/cache") {
    const diskBytes = blobs.reduce((sum: number, blob) => sum + blob.diskBytes, 0);
    return { blobs: blobs.length, diskBytes, capacityBytes: 200 * 2 ** 30, reserve: 0.05, evictedBytes: 0 };
  }
  if (path !== "/v1/blobs") return undefined;
  const start = Number(query.get("cursor") ?? 0);
  const end = start + Number(query.get("limit"));
  return { blobs: blobs.slice(start, end), next: end < blobs.length ? String(end) : null };
}

/**
 * @param paths of the OpenAPI document: path -> methods
 * @param answer what the API answers; what it does not know goes to the defaults: /openapi.json and /v1/health
 */
export async function startFakeApi(
  t: TestContext,
  paths: Record<string, readonly string[]>,
  answer: (request: FakeRequest) => FakeAnswer | Promise<FakeAnswer>,
): Promise<FakeApi> {
  const files = readStaticFiles();
  const requests: FakeRequest[] = [];
  const description = {
    paths: Object.fromEntries(
      Object.entries(paths).map(([path, methods]) => [
        path,
        Object.fromEntries(methods.map((method) => [method.toLowerCase(), {}])),
      ]),
    ),
    components: { schemas: {} },
  };
  const defaults: Record<string, object> = { "/openapi.json": description, "/v1/health": health };

  const handle = async (incoming: IncomingMessage, outgoing: ServerResponse): Promise<void> => {
    const { pathname, searchParams } = new URL(incoming.url ?? "/", "http://fake");
    const file = files.get(pathname === "/" ? "dashboard/index.html" : pathname.slice(1));
    if (file !== undefined) {
      outgoing.writeHead(200, { "content-type": file.type }).end(file.body);
      return;
    }
    let text = "";
    for await (const chunk of incoming.setEncoding("utf8")) text += chunk;
    const body: unknown = text === "" ? undefined : JSON.parse(text);
    const request = { method: incoming.method ?? "GET", path: pathname, query: searchParams, body };
    requests.push(request);
    const found = (await answer(request)) ?? defaults[pathname];
    const { status, body: sent } = asAnswer(found);
    outgoing.writeHead(status, { "content-type": "application/json" });
    outgoing.end(sent === undefined ? undefined : JSON.stringify(sent));
  };
  const server = createServer((incoming, outgoing) => {
    handle(incoming, outgoing).catch((error: unknown) => outgoing.destroy(error as Error));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  atEnd(t, async () => {
    const closed = new Promise((resolve) => server.close(resolve));
    server.closeAllConnections();
    await closed;
  });
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/`, requests };
}

function asAnswer(found: FakeAnswer): { status: number; body?: object } {
  if (found === undefined) {
    return { status: 404, body: { status: 404, code: "not-found", detail: "there is no such thing" } };
  }
  return "status" in found && typeof found.status === "number" ? found : { status: 200, body: found };
}

/** Answers GET /v1/volumes in pages, and GET /v1/volumes/NAME. */
export function answerVolumes(volumes: readonly any[], { method, path, query }: FakeRequest): FakeAnswer {
  if (method !== "GET") return undefined;
  if (path === "/v1/volumes") {
    const start = Number(query.get("cursor") ?? 0);
    const end = start + Number(query.get("limit"));
    return { volumes: volumes.slice(start, end), next: end < volumes.length ? String(end) : null };
  }
  const name = /^\/v1\/volumes\/([^/]+)$/.exec(path)?.[1];
  if (name !== undefined) return volumes.find((volume) => volume.name === decodeURIComponent(name));
  if (path.endsWith("/connections")) return { connections: [], next: null };
  return undefined;
}
