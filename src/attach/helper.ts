import { describeError, UllageError } from "../base/errors.ts";
import type { ExportDirectory } from "../export/block-device.ts";
import { NbdServer } from "../export/nbd/nbd-server.ts";
import { BoundedLog } from "./bounded-log.ts";
import { NbdClient } from "./nbd-client/client.ts";
import { startNbdfuse } from "./nbdfuse.ts";
import type { Place } from "./place.ts";
import { identify } from "./processes.ts";
import { RemoteDevice } from "./remote-device.ts";
import type { AttachRecord, HelperStatus } from "./state.ts";

/** How long nbdfuse's connections may take to end once it is gone. */
const STOP_GRACE_MS = 1_000;

/**
 * The process behind an attachment:
 *
 *     kernel (file system, loop) -> nbdfuse -> nbd.sock: NbdServer -> RemoteDevice -> NbdClient -> the daemon
 *
 * nbdfuse would fail for good when the daemon restarts, the client here does not. The helper lives as long as nbdfuse.
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
      state: "connected",
      reason: "",
      since: new Date().toISOString(),
      size: 0,
      readOnly: record.readOnly,
      failures: 0,
      lastFlush: null,
    };
  }

  /** Calls `onReady` when the file is there; resolves when nbdfuse has gone and all is put away. */
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
    const server = new NbdServer({
      exports: onlyExport(new RemoteDevice(client), this.#status.readOnly),
      log: (level, message) => {
        if (level !== "info") this.#log.line(`${level} ${message}`);
      },
    });
    await server.listen({ kind: "unix", path: this.#place.socket });
    try {
      const nbdfuse = await startNbdfuse(this.#place, this.#status.readOnly, (line) => this.#log.line(line));
      const gone = new Promise((resolve) => nbdfuse.once("close", resolve));
      this.#publish({ nbdfuse: identify(nbdfuse.pid!) ?? null });
      onReady();
      await gone;
      this.#log.line("nbdfuse has ended");
    } finally {
      await server.stop(STOP_GRACE_MS);
    }
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

function onlyExport(device: RemoteDevice, readOnly: boolean): ExportDirectory {
  return {
    list: () => [{ name: "" }],
    lookup: (name) =>
      Promise.resolve(
        name === "" ? { kind: "device", name, device, readOnly } : { kind: "none", reason: "there is one export, ''" },
      ),
  };
}

/** For the `attach` that started the helper. */
export function errorMessage(error: unknown): { code: string; message: string; hint: string | undefined } {
  const known = error instanceof UllageError ? error : undefined;
  return { code: known?.code ?? "attach-failed", message: describeError(error), hint: known?.hint };
}
