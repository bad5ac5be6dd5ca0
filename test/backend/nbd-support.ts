import { createHash } from "node:crypto";
import { closeSync, ftruncateSync, openSync, writeSync } from "node:fs";
import net from "node:net";
import { join } from "node:path";
import type { TestContext } from "node:test";
import { NbdBackend, type NbdOptions } from "../../src/backend/nbd/nbd.ts";
import { parseNbdSource } from "../../src/backend/nbd/nbd-address.ts";
import { systemClock } from "../../src/base/clock.ts";
import { temporaryDirectory } from "../daemon/support.ts";
import { pattern } from "./support.ts";

export const MiB = 1024 * 1024;

/** Without RetryBackend; time-outs that a loaded machine keeps. */
export function nbdBackend(uri: string, options: NbdOptions = {}): NbdBackend & AsyncDisposable {
  const backend = new NbdBackend(parseNbdSource(uri), systemClock, options);
  return Object.assign(backend, { [Symbol.asyncDispose]: () => backend.close() });
}

/** A sparse file: `dataBytes` at each of these offsets, nothing in between. */
export function sparseFile(path: string, size: number, dataBytes: number, offsets: readonly number[]): void {
  const file = openSync(path, "w");
  ftruncateSync(file, size);
  for (const offset of offsets) writeSync(file, pattern(dataBytes, offset + 1), 0, dataBytes, offset);
  closeSync(file);
}

export function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

/** A server between us and a good one, which changes the stream of answers; `meddle` sees each chunk, and how much went before it. */
export async function between(
  t: TestContext,
  upstream: string,
  meddle: (chunk: Buffer, client: net.Socket, connection: { bytes: number }) => Buffer | undefined,
): Promise<string> {
  const path = join(await temporaryDirectory(t), "between.sock");
  const sockets = new Set<net.Socket>();
  const server = net.createServer((client) => {
    const good = net.connect(upstream);
    for (const socket of [client, good]) {
      sockets.add(socket);
      socket.on("error", () => undefined);
      socket.on("close", () => [client, good].forEach((each) => each.destroy()));
    }
    const connection = { bytes: 0 };
    client.on("data", (chunk: Buffer) => good.write(chunk));
    good.on("data", (chunk: Buffer) => {
      const changed = meddle(chunk, client, connection);
      connection.bytes += chunk.length;
      if (changed !== undefined && changed.length > 0) client.write(changed);
    });
  });
  server.listen(path);
  t.after(() => {
    sockets.forEach((socket) => socket.destroy());
    server.close();
  });
  return `nbd+unix:///?socket=${path}`;
}
