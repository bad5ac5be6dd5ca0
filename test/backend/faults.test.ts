import assert from "node:assert/strict";
import { test } from "node:test";
import { RetryBudget } from "../../src/backend/retry-budget.ts";
import type { SourceSettings } from "../../src/backend/source-settings.ts";
import { describeError, SourceError } from "../../src/base/errors.ts";
import { systemClock } from "../../src/base/clock.ts";
import { type FakeServer, rangeAnswer, startFakeServer, type Trouble } from "../support/fake-server.ts";
import { artifact, startFakeRegistry } from "../support/registry-fake.ts";
import { startFakeStore } from "../support/store-fake.ts";
import { failsWith, openBackend, pattern, readBytes } from "./support.ts";

/*
 * Every backend against every bad day: the error is bounded and clear, and the same backend works again as soon as the
 * source does, without anybody's help.
 */

const content = pattern(300_000);
const secrets = ["fault-secret-key", "fault:password"];

interface Kind {
  name: string;
  start(): Promise<{
    server: FakeServer;
    source: string;
    settings: SourceSettings[];
    /** Makes what opens the source worth nothing; undo makes it good again. */
    expire(): () => void;
    /** Takes the object away. */
    drop(): void;
  }>;
}

const env = { K_ACCESS_KEY_ID: "ID", K_SECRET_ACCESS_KEY: secrets[0], L_USERNAME: "me", L_PASSWORD: secrets[1] };

const store = (scheme: "s3" | "oss"): Kind => ({
  name: scheme,
  async start() {
    const server = await startFakeStore(scheme);
    const owner = { secret: secrets[0] };
    server.keys.set("ID", owner);
    server.put("bucket", "disk", content);
    const region = scheme === "s3" ? "us-east-1" : "cn-hangzhou";
    return {
      server,
      source: `${scheme}://bucket/disk`,
      settings: [{ prefix: `${scheme}://`, endpoint: server.origin, pathStyle: true, region, credentials: "env:K_" }],
      expire: () => {
        server.keys.set("ID", { ...owner, expired: true });
        return () => void server.keys.set("ID", owner);
      },
      drop: () => server.remove("bucket", "disk"),
    };
  },
});

const registry = (redirects: boolean): Kind => ({
  name: redirects ? "oci, redirected" : "oci",
  async start() {
    const server = await startFakeRegistry();
    server.auth = "token";
    server.redirects = redirects;
    server.users.set("me", { password: secrets[1] });
    const { digest, size } = server.putBlob(content);
    server.putManifest("disk", "v1", artifact({ digest, size }));
    return {
      server,
      source: `oci://${server.host}/disk:v1`,
      settings: [{ prefix: "oci://", credentials: "env:L_" }],
      expire: () => {
        server.revokeTokens();
        server.expireRedirects();
        server.users.set("me", { password: "another" });
        return () => void server.users.set("me", { password: secrets[1] });
      },
      drop: () => {
        server.expireRedirects();
        server.dropBlob(digest);
      },
    };
  },
});

const web: Kind = {
  name: "http",
  async start() {
    let there = true;
    let open = true;
    const server = await startFakeServer((asked) => {
      const pair = Buffer.from(`me:${secrets[1]}`).toString("base64");
      if (!open || asked.headers.authorization !== `Basic ${pair}`) return { status: 401 };
      return there ? rangeAnswer(asked, content, { etag: '"one"' }) : { status: 404 };
    });
    return {
      server,
      source: `${server.origin}/disk`,
      settings: [{ prefix: "http://", credentials: "env:L_" }],
      expire: () => {
        open = false;
        return () => void (open = true);
      },
      drop: () => void (there = false),
    };
  },
};

const kinds = [web, store("s3"), store("oss"), registry(false), registry(true)];
const quick = { attempts: 20, baseMs: 1, capMs: 10, timeLimitMs: 10_000 };
const once = { ...quick, attempts: 1 };

/** What a read gets over in silence, when it happens once. */
const passing: [string, Trouble][] = [
  ["a reset before the answer", { kind: "reset" }],
  ["a reset in the middle", { kind: "reset", after: 1000 }],
  ["a body that ends early", { kind: "cut", after: 1000 }],
  ["no answer", { kind: "stall" }],
  ["silence in the middle", { kind: "stall", after: 1000 }],
  ["a 500", { kind: "status", status: 500 }],
  ["a 503 with Retry-After", { kind: "status", status: 503, headers: { "retry-after": "0" } }],
  ["a 429", { kind: "status", status: 429 }],
];

for (const kind of kinds) {
  void test(`${kind.name}: one hiccup of any kind is no error, and lasting ones are bounded`, async () => {
    const { server, source, settings } = await kind.start();
    await using _ = server;
    const open = (retry: typeof quick): ReturnType<typeof openBackend> =>
      openBackend(source, {
        env,
        settings,
        connections: { idleTimeoutMs: 250, connectTimeoutMs: 1000 },
        retry: {
          probe: retry,
          foreground: retry,
          background: retry,
          budget: new RetryBudget(systemClock, { burst: 1000, perSecond: 1000 }),
        },
      });
    const backend = open(quick);
    const { identity } = await backend.probe(10);
    const impatient = open(once);
    for (const [name, trouble] of passing) {
      server.inject(trouble);
      assert.deepEqual(await readBytes(backend, identity, 5, 200_000), content.subarray(5, 200_005), name);
      server.inject(trouble, 5);
      const error: unknown = await readBytes(impatient, identity, 5, 200_000).then(
        () => undefined,
        (each: unknown) => each,
      );
      assert.ok(error instanceof SourceError && error.transient, `${name}: ${describeError(error)}`);
      for (const secret of secrets) assert.ok(!`${describeError(error)} ${error.hint} ${error.stack}`.includes(secret));
      await drainInjected(server, () => readBytes(backend, identity, 0, 10));
    }
    await impatient.close();
    await backend.close();
  });

  void test(`${kind.name}: down at the start, refused for a while, gone: each is told apart, and each heals by itself`, async () => {
    const world = await kind.start();
    const { server, source, settings } = world;
    await using _ = server;
    const backend = openBackend(source, { env, settings, retry: { probe: once, foreground: once } });
    await server.pause();
    await failsWith("source-unreachable", backend.probe(10));
    await server.resume();
    const { identity } = await backend.probe(10);
    const renew = world.expire();
    assert.match((await failsWith("source-denied", readBytes(backend, identity, 0, 10))).hint ?? "", /credentials/);
    renew();
    assert.deepEqual(await readBytes(backend, identity, 0, 10), content.subarray(0, 10));
    await server.pause();
    await failsWith("source-unreachable", readBytes(backend, identity, 0, 10));
    await server.resume();
    assert.deepEqual(await readBytes(backend, identity, 0, 10), content.subarray(0, 10));
    world.drop();
    await failsWith("source-not-found", readBytes(backend, identity, 0, 10));
    await backend.close();
  });
}

/** Uses up what a read did not come across. */
async function drainInjected(server: FakeServer, read: () => Promise<unknown>): Promise<void> {
  for (let before = -1; before !== server.requests.length && before < server.requests.length - 1;) {
    before = server.requests.length;
    await read();
  }
}
