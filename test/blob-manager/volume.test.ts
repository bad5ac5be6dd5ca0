import assert from "node:assert/strict";
import { test } from "node:test";
import { connectBlobManager } from "../../src/blob/remote/connect.ts";
import { createVolume, newId, openVolume, read, volumeEnvironment, write } from "../support/volume-env.ts";
import { launch } from "../cli/support.ts";
import { lazyBlob, type Announced } from "./support.ts";

const MiB = 1024 * 1024;

void test("a volume in one process lies on a blob that another one caches, and survives that one's kill and its own close", async (t) => {
  const { content, dataDir, id: blobId } = await lazyBlob(t, 4 * MiB, 5);
  let manager = await launch<Announced>(t, ["blobd", "--data", dataDir]);
  const connection = connectBlobManager(manager.announced.socket);
  t.after(() => connection.close());
  const env = volumeEnvironment(t);
  const id = newId();
  await createVolume(env, 4 * MiB, { id, blob: { id: blobId, size: 4 * MiB } });
  const life = async (): Promise<{ close(): Promise<void>; volume: Awaited<ReturnType<typeof openVolume>> }> => {
    const blob = await connection.open(blobId);
    const volume = await openVolume(env, id, { openBlob: () => Promise.resolve(blob) });
    return {
      volume,
      close: async () => {
        await volume.close();
        await blob.close();
      },
    };
  };
  const first = await life();
  assert.ok((await read(first.volume, MiB, 8192)).equals(content.subarray(MiB, MiB + 8192)));
  // A partial write completes its block from the blob, which is not there yet.
  await write(first.volume, 2 * MiB + 100, Buffer.alloc(50, 0xee));
  await first.volume.flush();
  const reading = read(first.volume, 3 * MiB, 4096);
  await manager.stop("SIGKILL");
  manager = await launch<Announced>(t, ["blobd", "--data", dataDir]);
  assert.ok((await reading).equals(content.subarray(3 * MiB, 3 * MiB + 4096)), "in flight when the manager was killed");
  await first.close();
  const second = await life();
  const expected = Buffer.from(content);
  expected.fill(0xee, 2 * MiB + 100, 2 * MiB + 150);
  assert.ok((await read(second.volume, 0, 4 * MiB)).equals(expected));
  await second.close();
});
