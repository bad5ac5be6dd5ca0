import { join } from "node:path";
import type { TestContext } from "node:test";
import { NbdClient, type ClientState, type NbdClientOptions } from "../../src/attach/nbd-client/client.ts";
import { RemoteDevice } from "../../src/attach/remote-device.ts";
import type { ExportDirectory } from "../../src/export/block-device.ts";
import { NbdServer } from "../../src/export/nbd/nbd-server.ts";
import { atEnd, temporaryDirectory } from "../daemon/support.ts";
import { oneExport } from "../nbd/support.ts";
import { MemoryDevice } from "../support/memory-device.ts";

export const MiB = 1024 * 1024;

/** A server that can go and come back on the same socket, over a device that survives that. */
export class ComingAndGoing {
  readonly path: string;
  exports: ExportDirectory;
  #server: NbdServer | undefined;

  private constructor(path: string, device: MemoryDevice) {
    this.path = path;
    this.exports = oneExport(device);
  }

  static async start(t: TestContext, device = new MemoryDevice({ size: 16 * MiB })): Promise<ComingAndGoing> {
    const server = new ComingAndGoing(join(await temporaryDirectory(t), "nbd.sock"), device);
    atEnd(t, () => server.stop());
    await server.start();
    return server;
  }

  async start(): Promise<void> {
    const directory: ExportDirectory = {
      list: () => this.exports.list(),
      lookup: (name) => this.exports.lookup(name),
    };
    this.#server = new NbdServer({ exports: directory, log: () => undefined });
    await this.#server.listen(`unix:${this.path}`);
  }

  /** Cuts every connection; operations that had started go on in the device. */
  async stop(): Promise<void> {
    await this.#server?.stop(0);
    this.#server = undefined;
  }

  get connections(): number {
    return this.#server?.connections().length ?? 0;
  }
}

export interface Connected {
  client: NbdClient;
  device: RemoteDevice;
  /** Every change of state, in order. */
  states: ClientState[];
}

export async function connect(
  t: TestContext,
  path: string,
  options: Partial<NbdClientOptions> = {},
): Promise<Connected> {
  const states: ClientState[] = [];
  const client = await NbdClient.connect({
    address: { kind: "unix", path },
    exportName: "disk",
    timeoutMs: 60_000,
    onState: (state) => states.push(state),
    ...options,
  });
  atEnd(t, () => client.close().catch(() => undefined));
  return { client, device: new RemoteDevice(client), states };
}
