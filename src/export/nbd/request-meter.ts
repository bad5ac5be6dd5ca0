import type { ExportTraffic, Operation } from "../export-traffic.ts";
import { Command, NbdError } from "../../nbd/protocol.ts";

/** The commands that are timed. */
const operationOf: Readonly<Record<number, Operation | undefined>> = {
  [Command.read]: "read",
  [Command.write]: "write",
  [Command.flush]: "flush",
  [Command.trim]: "trim",
  [Command.cache]: "cache",
  [Command.writeZeroes]: "zero",
};

const errnoNames = new Map<number, string>(Object.entries(NbdError).map(([name, code]) => [code, name]));

/**
 * Counts a connection's requests into the traffic of its export.
 *
 * What the device does at once is counted in plain numbers and timed per batch: a batch is what one turn of the event
 * loop takes from the receive buffer, and costs two looks at the clock however many requests are in it. Each of them
 * counts with the time of the whole batch, from its first request taken to its last reply handed to the kernel. Slow
 * operations are timed one by one, from being started to their reply being ready.
 */
export class RequestMeter {
  readonly traffic: ExportTraffic;
  /** Done at once in the present batch. */
  reads = 0;
  readBytes = 0;
  writes = 0;
  writtenBytes = 0;
  #batchBegan = 0;

  constructor(traffic: ExportTraffic) {
    this.traffic = traffic;
  }

  beginBatch(): void {
    this.#batchBegan = performance.now();
  }

  endBatch(): void {
    if (this.reads === 0 && this.writes === 0) return;
    const ms = performance.now() - this.#batchBegan;
    if (this.reads > 0) {
      this.traffic.read.count(ms, this.readBytes, this.reads);
      this.traffic.localReads += this.reads;
      this.reads = 0;
      this.readBytes = 0;
    }
    if (this.writes > 0) {
      this.traffic.write.count(ms, this.writtenBytes, this.writes);
      this.writes = 0;
      this.writtenBytes = 0;
    }
  }

  /** A slow operation has succeeded. */
  ended(command: number, began: number, bytes: number): void {
    const operation = operationOf[command];
    if (operation !== undefined) this.traffic[operation].count(performance.now() - began, bytes);
  }

  /** A slow read has succeeded. @param fromSource it had to wait for the source */
  readEnded(began: number, bytes: number, fromSource: boolean): void {
    this.traffic.read.count(performance.now() - began, bytes);
    if (fromSource) this.traffic.sourceReads++;
    else this.traffic.localReads++;
  }

  failed(command: number, errno: string): void {
    this.traffic.failed(operationOf[command] ?? "other", errno);
  }

  /** A request was refused before the device saw it. @param code of NBD */
  refused(command: number, code: number): void {
    this.failed(command, errnoNames.get(code) ?? "EINVAL");
  }
}
