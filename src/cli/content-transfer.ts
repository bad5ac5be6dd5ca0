import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import type { Readable } from "node:stream";
import { describeError, UllageError } from "../base/errors.ts";
import type { File } from "../base/file-system.ts";
import { IoBuffer } from "../base/io-buffer.ts";
import { realFileSystem } from "../base/real-file-system.ts";
import type { VolumeView } from "../daemon/views.ts";
import {
  readSparse,
  sparseAlive,
  sparseContentType,
  sparseData,
  sparseEnd,
  sparseHeader,
} from "../image/sparse-stream.ts";
import { isBroken, type ApiClient, type UploadBody } from "./api-client.ts";
import { PartialFile, StandardOutput } from "./content-output.ts";
import { ProgressLine, ProgressMeter } from "./progress.ts";
import { stopSignal } from "./signals.ts";

/*
 * Disks on their way from the daemon to this machine and back, without their zeros (image/sparse-stream.ts). Ctrl-C ends
 * both, and is obeyed when nothing is left.
 */

const pieceBytes = 256 * 1024;
const showMs = 200;
/** Silence after which the daemon is told that more will come; it gives up after 30 seconds. */
const waitMs = 10_000;

interface TransferOptions {
  /** Shows no progress. */
  quiet: boolean;
}

/** What arrived: bytes of the file, and of them those that were sent. */
export interface Received {
  size: number;
  dataBytes: number;
}

/**
 * @param path of the content in the API @param to undefined: standard output
 * @throws UllageError with what the daemon answered; `output-exists`, `output`, `transfer-cut`, `cancelled`
 */
export async function receiveContent(
  daemon: ApiClient,
  path: string,
  to: { path: string; force: boolean } | undefined,
  { quiet }: TransferOptions,
): Promise<Received> {
  const stop = stopSignal();
  const output = to === undefined ? new StandardOutput() : await PartialFile.create(to.path, to.force);
  const progress = new Progress(quiet, to === undefined ? process.stderr : process.stdout);
  const over = new AbortController();
  let received = 0;
  try {
    const signal = AbortSignal.any([stop, over.signal]);
    const content = await readSparse(await daemon.stream(path, signal, sparseContentType));
    const size = content.size!; // the daemon knows it
    await output.begin(size);
    for await (const piece of content.pieces) {
      await output.write(piece);
      received += piece.bytes.length;
      progress.show(content.looked, content.dataBytes);
    }
    await output.end();
    return { size, dataBytes: received };
  } catch (error) {
    await output.abandon();
    const left = to === undefined ? "what was written is not complete" : `nothing is left of '${to.path}'`;
    if (stop.aborted) throw new UllageError("cancelled", `cancelled: ${left}`);
    if (error instanceof UllageError) throw error;
    throw new UllageError("transfer-cut", `the daemon broke the transfer off: ${describeError(error)}`, {
      hint: "look at the daemon's log",
    });
  } finally {
    over.abort(); // closes the connection, if all is not here
    progress.end();
  }
}

/**
 * A file or a block device is sent again when the daemon is restarted meanwhile, other things can't be read twice.
 * @param path of the content in the API @param name of the volume @param from undefined: standard input
 * @throws UllageError with what the daemon answered; `input`, `transfer-cut`, `cancelled`
 */
export async function sendContent(
  daemon: ApiClient,
  path: string,
  name: string,
  from: string | undefined,
  { quiet }: TransferOptions,
): Promise<VolumeView> {
  const stop = stopSignal();
  const progress = new Progress(quiet, process.stdout);
  const { open, again } = await bodyOf(from, stop, progress);
  try {
    return await daemon.upload<VolumeView>(path, sparseContentType, { open, canRepeat: () => again && !stop.aborted });
  } catch (error) {
    if (stop.aborted) throw new UllageError("cancelled", `cancelled: nothing is left of '${name}'`);
    if (again || !isBroken(error)) throw error;
    throw new UllageError("transfer-cut", `the connection to the daemon broke; nothing is left of '${name}'`, {
      cause: error,
      hint: `${from ?? "standard input"} can't be read again: give the command once more, or send a file`,
    });
  } finally {
    progress.end();
  }
}

/** What is sent, and whether it can be read again. */
async function bodyOf(
  from: string | undefined,
  stop: AbortSignal,
  progress: Progress,
): Promise<{ open: UploadBody["open"]; again: boolean }> {
  if (from === undefined) {
    return { open: async () => streamBody(process.stdin, "standard input", stop, progress), again: false };
  }
  const found = await stat(from).catch((error: unknown) => {
    throw unreadable(from, error);
  });
  if (found.isDirectory()) throw unreadable(from, "it is a directory");
  if (found.isFile()) {
    return { open: async () => fileBody(await realFileSystem.open(from, "read"), stop, progress), again: true };
  }
  // A device, a pipe.
  return {
    open: async () => streamBody(createReadStream(from), from, stop, progress),
    again: found.isBlockDevice(),
  };
}

/** Only what has data on disk is read. */
async function* fileBody(file: File, stop: AbortSignal, progress: Progress): AsyncGenerator<Buffer> {
  try {
    const size = file.size();
    yield sparseHeader(size);
    const piece = new IoBuffer(pieceBytes);
    let at = file.seekData(0);
    while (at >= 0 && at < size) {
      const end = Math.min(file.seekHole(at), size);
      while (at < end) {
        if (stop.aborted) return; // without an end: the daemon answers when nothing is left
        const length = Math.min(pieceBytes, end - at);
        if ((await file.read(piece, 0, length, at)) < length) throw unreadable(file.path, "it became shorter");
        const records = sparseData(piece.bytes, 0, length, at);
        if (records.length > 0) yield records;
        at += length;
        progress.show(at, size);
      }
      at = file.seekData(at);
    }
    yield sparseEnd(size);
  } finally {
    await file.close();
  }
}

async function* streamBody(
  input: Readable,
  from: string,
  stop: AbortSignal,
  progress: Progress,
): AsyncGenerator<Buffer> {
  const chunks = input[Symbol.asyncIterator]() as AsyncIterator<Buffer>;
  const piece = Buffer.allocUnsafe(pieceBytes);
  let filled = 0;
  let at = 0;
  try {
    yield sparseHeader(undefined);
    for (let coming = chunks.next(); ;) {
      const next = await soon(coming, stop).catch((error: unknown) => {
        throw unreadable(from, error);
      });
      if (stop.aborted) return;
      if (next === undefined) {
        yield sparseAlive();
        continue;
      }
      if (next.done === true) break;
      for (let rest = next.value; rest.length > 0;) {
        const taken = rest.copy(piece, filled);
        filled += taken;
        rest = rest.subarray(taken);
        if (filled < pieceBytes) break;
        const records = sparseData(piece, 0, filled, at);
        if (records.length > 0) yield records;
        at += filled;
        filled = 0;
        progress.show(at, null);
      }
      coming = chunks.next();
    }
    yield sparseData(piece, 0, filled, at);
    yield sparseEnd(at + filled);
  } finally {
    input.destroy();
  }
}

/** @returns undefined when it takes long, or it is to stop */
function soon<T>(coming: Promise<T>, stop: AbortSignal): Promise<T | undefined> {
  return new Promise((resolve, reject) => {
    const settle = (then: () => void): void => {
      clearTimeout(timer);
      stop.removeEventListener("abort", wake);
      then();
    };
    const wake = (): void => settle(() => resolve(undefined));
    const timer = setTimeout(wake, waitMs);
    if (stop.aborted) return wake();
    stop.addEventListener("abort", wake, { once: true });
    coming.then(
      (value) => settle(() => resolve(value)),
      (error: Error) => settle(() => reject(error)),
    );
  });
}

function unreadable(from: string, why: unknown): UllageError {
  return new UllageError("input", `can't read ${from}`, {
    cause: why,
    hint: "name a file that this user may read, or -",
  });
}

/** A line about how far it is, on a terminal or in a log. */
class Progress {
  readonly #line: ProgressLine | undefined;
  readonly #meter = new ProgressMeter();
  #shownAt = performance.now();

  constructor(quiet: boolean, out: NodeJS.WriteStream) {
    if (!quiet && (out.isTTY || out === process.stdout)) this.#line = new ProgressLine(out);
  }

  show(done: number, total: number | null): void {
    if (this.#line === undefined || performance.now() - this.#shownAt < showMs) return;
    this.#shownAt = performance.now();
    this.#line.show(this.#meter.text(done, total));
  }

  end(): void {
    this.#line?.end();
  }
}
