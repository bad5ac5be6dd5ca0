/**
 * A process that serves one volume to the test that started it: it takes operations over the IPC channel and answers
 * each when the engine has. It is made to be killed.
 */
import { randomBytes } from "node:crypto";
import { describeError, errnoOf } from "../../src/base/errors.ts";
import { systemClock } from "../../src/base/clock.ts";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { realFileSystem } from "../../src/base/real-file-system.ts";
import { BlobCache } from "../../src/blob/cache.ts";
import type { VolumeLimits } from "../../src/volume/limits.ts";
import type { VolumeState } from "../../src/volume/types.ts";
import { Volume } from "../../src/volume/volume.ts";
import { stamp } from "../sim/oracle.ts";

export interface ServeRequest {
  kind: "create" | "serve";
  dataDir: string;
  runtimeDir: string;
  id: string;
  size: number;
  /** bytes of the image below the volume; 0: an empty volume */
  imageBytes: number;
  limits: Partial<VolumeLimits>;
  acceptLoss: boolean;
}

export interface Request {
  kind: "write" | "trim" | "zero" | "allocate" | "flush" | "read" | "checkpoint" | "close";
  number: number;
  offset: number;
  length: number;
  bytes?: Uint8Array;
}

export type Message =
  | { kind: "created" }
  | { kind: "serving"; state: VolumeState; lineage: string }
  | { kind: "refused"; code: string; message: string }
  | { kind: "answer"; number: number; error?: string; bytes?: Uint8Array };

const unitBytes = 65536;

process.once("message", (request: ServeRequest) => {
  void start(request);
});
process.once("disconnect", () => process.exit(0)); // the test is gone

async function start(request: ServeRequest): Promise<void> {
  try {
    const volume = await openOrCreate(request);
    if (volume === undefined) {
      say({ kind: "created" });
      return;
    }
    process.on("message", (next: Request) => void answer(volume, next));
    say({ kind: "serving", state: volume.info().state, lineage: volume.lineage });
  } catch (error) {
    say({ kind: "refused", code: (error as { code?: string }).code ?? "", message: describeError(error) });
  }
}

async function openOrCreate(request: ServeRequest): Promise<Volume | undefined> {
  const { dataDir, runtimeDir, id, size, imageBytes, limits, acceptLoss } = request;
  const log = (level: string, message: string): void => {
    if (process.env["ULLAGE_TRACE"] !== undefined) console.error(`${process.pid} ${level}: ${message}`);
  };
  const env = { fs: realFileSystem, clock: systemClock, randomBytes, dataDir, runtimeDir, limits, log };
  const cache = await BlobCache.open({ ...env, openSource: () => Promise.resolve(source(imageBytes)) });
  if (request.kind === "create") {
    const image = {
      url: "http://source.test/image",
      imageFormat: "raw",
      identity: { size: imageBytes, version: 'etag:"1"', strong: true },
      size: imageBytes,
      unitBytes,
    };
    const blob = imageBytes > 0 ? await cache.create(image) : undefined;
    await Volume.create(env, { id, name: "disk", size, ...(blob && { blob: { id: blob.id, size: imageBytes } }) });
    await cache.close();
    return undefined;
  }
  return Volume.open(env, {
    id,
    name: "disk",
    settings: { sync: "normal", remoteAfterPowerLoss: "refuse" },
    openBlob: (blobId) => cache.open(blobId),
    acceptLoss,
  });
}

/** An image whose every sector names itself, behind a network that is never twice the same. */
function source(size: number): Awaited<ReturnType<Parameters<typeof BlobCache.open>[0]["openSource"]>> {
  return {
    size,
    async read(offset, length, sink) {
      await systemClock.sleep(Math.random() * 4);
      for (let at = offset; at < offset + length; at += unitBytes) {
        await sink(stamp("image", at, Math.min(unitBytes, offset + length - at)));
      }
    },
  };
}

async function answer(volume: Volume, request: Request): Promise<void> {
  const { number } = request;
  try {
    const bytes = await perform(volume, request);
    say({ kind: "answer", number, ...(bytes && { bytes }) });
  } catch (error) {
    say({ kind: "answer", number, error: `${errnoOf(error)}: ${describeError(error)}` });
  }
}

async function perform(volume: Volume, request: Request): Promise<Uint8Array | undefined> {
  const { kind, offset, length } = request;
  if (kind === "read") {
    const buffer = new IoBuffer(length);
    if (!volume.tryRead(offset, length, buffer, 0)) await volume.read(offset, length, buffer, 0);
    return buffer.bytes;
  }
  if (kind === "write") {
    const buffer = IoBuffer.from(request.bytes!);
    if (!volume.tryWrite(offset, length, buffer, 0)) await volume.write(offset, length, buffer, 0);
  } else if (kind === "trim") await volume.trim(offset, length);
  else if (kind === "flush") await volume.flush();
  else if (kind === "checkpoint") await volume.checkpoint();
  else if (kind === "close") await volume.close();
  else await volume.zero(offset, length, { allocate: kind === "allocate", fast: false });
  return undefined;
}

function say(message: Message): void {
  process.send?.(message);
}
