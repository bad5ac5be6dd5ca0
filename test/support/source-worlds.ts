import { mkdir, rename, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { TestContext } from "node:test";
import type { SourceSettings } from "../../src/backend/source-settings.ts";
import { atEnd, temporaryDirectory } from "../daemon/support.ts";
import { type FakeServer, rangeAnswer, startFakeServer } from "./fake-server.ts";
import { startQemuNbd } from "./nbd-source.ts";
import { artifact, startFakeRegistry } from "./registry-fake.ts";
import { startFakeStore } from "./store-fake.ts";
import type { ToolName } from "./tools.ts";

/** A source of some kind, and what may become of it. */
export interface World {
  source: string;
  settings: SourceSettings[];
  /** Nobody is there. */
  down(): Promise<void>;
  up(): Promise<void>;
  /** Another content is there from now on, and the one before is no more. */
  change(content: Buffer): Promise<void> | void;
}

/** One that is spoken with over HTTP. */
export interface WebWorld extends World {
  server: FakeServer;
  /** Makes what opens the source worth nothing; undo makes it good again. */
  expire(): () => void;
  /** Takes the object away. */
  drop(): void;
}

export interface WorldKind<W extends World = World> {
  name: string;
  tools: readonly ToolName[];
  /** Nothing pins it for sure. */
  unpinned: boolean;
  start(t: TestContext, content: Buffer): Promise<W>;
}

export const secrets = ["world-secret-key", "world:password"];

/** What the references in the worlds' settings lead to. */
export const worldEnv = {
  K_ACCESS_KEY_ID: "ID",
  K_SECRET_ACCESS_KEY: secrets[0],
  L_USERNAME: "me",
  L_PASSWORD: secrets[1],
};

/** So long a read of a client is tried again, seconds: tests do not want to wait for half a minute. */
const patience = 1;

function served(t: TestContext, server: FakeServer): Pick<WebWorld, "server" | "down" | "up"> {
  let there = true;
  atEnd(t, async () => (there ? server[Symbol.asyncDispose]() : undefined));
  return {
    server,
    down: async () => {
      if (there) await server.pause();
      there = false;
    },
    up: async () => {
      if (!there) await server.resume();
      there = true;
    },
  };
}

const web: WorldKind<WebWorld> = {
  name: "http",
  tools: [],
  unpinned: false,
  async start(t, first) {
    let content: Buffer | undefined = first;
    let open = true;
    let version = 1;
    const server = await startFakeServer((asked) => {
      const pair = Buffer.from(`me:${secrets[1]}`).toString("base64");
      if (!open || asked.headers.authorization !== `Basic ${pair}`) return { status: 401 };
      return content === undefined ? { status: 404 } : rangeAnswer(asked, content, { etag: `"${version}"` });
    });
    return {
      ...served(t, server),
      source: `${server.origin}/disk`,
      settings: [{ prefix: "http://", credentials: "env:L_", patience }],
      expire: () => {
        open = false;
        return () => void (open = true);
      },
      drop: () => void (content = undefined),
      change: (next) => {
        content = next;
        version++;
      },
    };
  },
};

const store = (scheme: "s3" | "oss"): WorldKind<WebWorld> => ({
  name: scheme,
  tools: [],
  unpinned: false,
  async start(t, content) {
    const server = await startFakeStore(scheme);
    const owner = { secret: secrets[0] };
    server.keys.set("ID", owner);
    server.put("bucket", "disk", content);
    const region = scheme === "s3" ? "us-east-1" : "cn-hangzhou";
    const at = { prefix: `${scheme}://`, endpoint: server.origin, pathStyle: true, region };
    return {
      ...served(t, server),
      source: `${scheme}://bucket/disk`,
      settings: [{ ...at, credentials: "env:K_", patience }],
      expire: () => {
        server.keys.set("ID", { ...owner, expired: true });
        return () => void server.keys.set("ID", owner);
      },
      drop: () => server.remove("bucket", "disk"),
      change: (next) => void server.put("bucket", "disk", next),
    };
  },
});

const registry = (redirects: boolean): WorldKind<WebWorld> => ({
  name: redirects ? "oci, redirected" : "oci",
  tools: [],
  unpinned: false,
  async start(t, content) {
    const server = await startFakeRegistry();
    server.auth = "token";
    server.redirects = redirects;
    server.users.set("me", { password: secrets[1] });
    let blob = server.putBlob(content);
    server.putManifest("disk", "v1", artifact(blob));
    const drop = (): void => {
      server.expireRedirects();
      server.dropBlob(blob.digest);
    };
    return {
      ...served(t, server),
      source: `oci://${server.host}/disk:v1`,
      settings: [{ prefix: "oci://", credentials: "env:L_", patience }],
      expire: () => {
        server.revokeTokens();
        server.expireRedirects();
        server.users.set("me", { password: "another" });
        return () => void server.users.set("me", { password: secrets[1] });
      },
      drop,
      change: (next) => {
        drop();
        blob = server.putBlob(next);
        server.putManifest("disk", "v1", artifact(blob));
      },
    };
  },
});

const file: WorldKind = {
  name: "file",
  tools: [],
  unpinned: false,
  async start(t, content) {
    const folder = join(await temporaryDirectory(t), "folder");
    await mkdir(folder);
    const path = join(folder, "disk.raw");
    await writeFile(path, content);
    return {
      source: path,
      settings: [],
      // As if it were not mounted: a rename of the file itself shows in its times.
      down: () => rename(folder, `${folder}.away`),
      up: () => rename(`${folder}.away`, folder),
      change: (next) => writeFile(path, next),
    };
  },
};

const nbd: WorldKind = {
  name: "nbd",
  tools: ["qemu-nbd"],
  unpinned: true,
  async start(t, content) {
    const path = join(await temporaryDirectory(t), "disk.raw");
    await writeFile(path, content);
    const server = await startQemuNbd(t, "-f", "raw", "-r", path);
    return {
      source: server.uri(),
      settings: [{ prefix: "nbd+unix://", patience }],
      down: () => server.kill(),
      up: () => server.start(),
      change: async (next) => {
        await server.kill();
        await writeFile(path, next);
        await server.start();
      },
    };
  },
};

export const webWorlds = [web, store("s3"), store("oss"), registry(false), registry(true)];
export const worlds: readonly WorldKind[] = [file, ...webWorlds, nbd];
