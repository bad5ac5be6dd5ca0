/*
 * Fills some of a blob, saving its range map now and then, until it is killed; says `durable` after the second save, and
 * waits for its end after two more: however late that comes, there is something left to be filled in its next lives.
 */
import { randomBytes } from "node:crypto";
import { systemClock } from "../../src/base/clock.ts";
import { realFileSystem } from "../../src/base/real-file-system.ts";
import { BlobCache } from "../../src/blob/cache.ts";

const [dataDir, id] = process.argv.slice(2);
const cache = await BlobCache.open({
  fs: realFileSystem,
  clock: systemClock,
  dataDir,
  randomBytes,
  log: (_level, message) => console.error(message),
  openSource: (meta) =>
    Promise.resolve({
      size: meta.size,
      async read(offset, length, sink) {
        const content = Buffer.alloc(length);
        for (let at = 0; at < length; at += 8) content.writeDoubleLE(offset + at + 1, at);
        await sink(content);
      },
    }),
});
const blob = await cache.open(id);
const step = 1024 * 1024;
let at = 0;
while (blob.isReady(at, step)) at += step;
for (let saves = 1; saves <= 4; saves++) {
  for (let n = 0; n < 4; n++, at += step) await blob.fetch(at, step, { background: true });
  await blob.sync();
  if (saves === 2) console.log("durable");
}
setInterval(() => undefined, 1000);
