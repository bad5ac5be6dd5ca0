import assert from "node:assert/strict";
import { test } from "node:test";
import { RetryBudget } from "../../src/backend/wrappers/retry-budget.ts";
import { describeError, SourceError } from "../../src/base/errors.ts";
import { systemClock } from "../../src/base/clock.ts";
import type { FakeServer, Trouble } from "../support/fake-server.ts";
import { secrets, webWorlds, worldEnv } from "../support/source-worlds.ts";
import { failsWith, openBackend, pattern, readBytes } from "./support.ts";

/*
 * Every backend against every bad day: the error is bounded and clear, and the same backend works again as soon as the
 * source does, without anybody's help.
 */

const content = pattern(300_000);
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

for (const kind of webWorlds) {
  void test(`${kind.name}: one hiccup of any kind is no error, and lasting ones are bounded`, async (t) => {
    const { server, source, settings } = await kind.start(t, content);
    const open = (retry: typeof quick): ReturnType<typeof openBackend> =>
      openBackend(source, {
        env: worldEnv,
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

  void test(`${kind.name}: down at the start, refused for a while, gone: each is told apart, and each heals by itself`, async (t) => {
    const world = await kind.start(t, content);
    const { source, settings } = world;
    const backend = openBackend(source, { env: worldEnv, settings, retry: { probe: once, foreground: once } });
    await world.down();
    await failsWith("source-unreachable", backend.probe(10));
    await world.up();
    const { identity } = await backend.probe(10);
    const renew = world.expire();
    assert.match((await failsWith("source-denied", readBytes(backend, identity, 0, 10))).hint ?? "", /credentials/);
    renew();
    assert.deepEqual(await readBytes(backend, identity, 0, 10), content.subarray(0, 10));
    await world.down();
    await failsWith("source-unreachable", readBytes(backend, identity, 0, 10));
    await world.up();
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
