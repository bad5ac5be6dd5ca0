import { describeError, UllageError } from "../base/errors.ts";
import type { ExportDirectory } from "../export/block-device.ts";
import { NbdServer } from "../export/nbd/nbd-server.ts";
import { BoundedLog } from "./bounded-log.ts";
import { NbdClient } from "./nbd-client/client.ts";
import { exportAsItIsNow } from "./nbd-client/probe.ts";
import { nbdDevicesOf } from "./block-devices.ts";
import { connectKernel, disconnectKernel } from "./kernel-nbd.ts";
import { startNbdfuse } from "./nbdfuse.ts";
import type { Place } from "./place.ts";
import { identify } from "./processes.ts";
import { RemoteDevice } from "./remote-device.ts";
import type { AttachRecord, HelperStatus } from "./state.ts";
import { startWatcher } from "./watcher.ts";

/** How long connections may take to end once nbdfuse, or the kernel's device, is gone. */
const STOP_GRACE_MS = 1_000;

/**
 * The process behind an attachment:
 *
 *     kernel (file system, nbd) -------------> nbd.sock: NbdServer -> RemoteDevice -> NbdClient -> the daemon
 *     kernel (file system, loop) -> nbdfuse ->
 *
 * The kernel and nbdfuse would fail for good when the daemon restarts, the client here does not. The helper lives until the
 * kernel has disconnected, or nbdfuse has ended.
 */
export class Helper {
  readonly #place: Place;
  readonly #record: AttachRecord;
  readonly #log: BoundedLog;
  #status: HelperStatus;

  constructor(place: Place, record: AttachRecord) {
    this.#place = place;
    this.#record = record;
    this.#log = new BoundedLog((line) => void process.stderr.write(line));
    this.#status = {
      helper: identify(process.pid)!,
      nbdfuse: null,
      served: false,
      state: "connected",
      reason: "",
      since: new Date().toISOString(),
      size: 0,
      readOnly: record.readOnly,
      failures: 0,
      lastFlush: null,
    };
  }

  /** Calls `onReady` when the device or the file is there; resolves when it has gone and all is put away. */
  async run(onReady: () => void): Promise<void> {
    this.#publish({});
    const client = await this.#connect();
    try {
      await this.#serve(client, onReady);
    } finally {
      await client.close().catch((error: unknown) => {
        this.#log.line(`the last flush failed: ${describeError(error)}`);
        this.#status.lastFlush = describeError(error);
      });
      this.#publish({ state: "closed", failures: client.failures });
    }
  }

  async #connect(): Promise<NbdClient> {
    const { name, exportName, address, timeoutMs } = this.#record;
    const client = await NbdClient.connect({
      address,
      exportName,
      timeoutMs,
      onState: (state, reason) => {
        this.#log.line(`${state}${reason === "" ? "" : `: ${reason}`}`);
        this.#publish({ state, reason, since: new Date().toISOString() });
      },
    });
    const { size, readOnly, lineage } = client.info;
    this.#log.line(`connected to '${name}': ${size} bytes, lineage ${lineage}${readOnly ? ", read-only" : ""}`);
    this.#publish({ size, readOnly: readOnly || this.#record.readOnly });
    return client;
  }

  async #serve(client: NbdClient, onReady: () => void): Promise<void> {
    let kernelEnded = (): void => undefined;
    const kernelEnds = new Promise<void>((resolve) => (kernelEnded = resolve));
    const server = new NbdServer({
      exports: onlyExport(client, this.#status.readOnly),
      log: (level, message) => {
        if (level !== "info") this.#log.line(`${level} ${message}`);
      },
      watch: (what, exportName) => {
        if (what === "closed" && exportName === "") kernelEnded();
      },
    });
    await server.listen({ kind: "unix", path: this.#place.socket });
    try {
      if (this.#record.via === "kernel") await this.#throughKernel(kernelEnds, onReady);
      else await this.#throughNbdfuse(onReady);
    } finally {
      await server.stop(STOP_GRACE_MS);
    }
  }

  async #throughKernel(ends: Promise<void>, onReady: () => void): Promise<void> {
    const endWatcher = startWatcher(this.#place);
    try {
      const name = await connectKernel(this.#place.socket, this.#place.backend);
      this.#log.line(`it is /dev/${name}`);
      this.#publish({ served: true });
      onReady();
      await ends;
      this.#log.line("the kernel's connection has ended");
      // It was `detach`, or the connection broke: what was not answered must not hang in the kernel.
      for (const device of nbdDevicesOf(this.#place.backend)) await disconnectKernel(device.name);
    } finally {
      await endWatcher();
    }
  }

  async #throughNbdfuse(onReady: () => void): Promise<void> {
    const nbdfuse = await startNbdfuse(this.#place, this.#status.readOnly, (line) => this.#log.line(line));
    const ends = new Promise<void>((resolve) => nbdfuse.once("close", () => resolve()));
    this.#publish({ nbdfuse: identify(nbdfuse.pid!) ?? null, served: true });
    onReady();
    await ends;
    this.#log.line("nbdfuse has ended");
  }

  #publish(change: Partial<HelperStatus>): void {
    this.#status = { ...this.#status, ...change };
    try {
      this.#place.writeStatus(this.#status);
    } catch (error) {
      // The disk above us matters more than what is told about it: /run may be full.
      this.#log.line(`the status can't be written: ${describeError(error)}`);
    }
  }
}

/** One export under two names: "", and `exportAsItIsNow`, for which its size is found out first. */
function onlyExport(client: NbdClient, readOnly: boolean): ExportDirectory {
  const device = new RemoteDevice(client);
  return {
    list: () => [{ name: "" }],
    async lookup(name) {
      if (name === exportAsItIsNow) {
        const failure = await client.refresh().catch(describeError);
        if (failure !== undefined) return { kind: "none", reason: failure };
      } else if (name !== "") {
        return { kind: "none", reason: "there is one export, ''" };
      }
      return { kind: "device", name, device, readOnly };
    },
  };
}

/** For the `attach` that started the helper. */
export function errorMessage(error: unknown): { code: string; message: string; hint: string | undefined } {
  const known = error instanceof UllageError ? error : undefined;
  return { code: known?.code ?? "attach-failed", message: describeError(error), hint: known?.hint };
}
