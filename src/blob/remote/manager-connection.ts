import { closeSync, openSync } from "node:fs";
import { constants } from "node:os";
import { IoError, UllageError } from "../../base/errors.ts";
import { isId } from "../../base/ids.ts";
import { orAborted } from "../../base/or-aborted.ts";
import type { MessageSocket } from "../../base/threads/message-sockets.ts";
import type { CachedBlob } from "../cached-blob.ts";
import { encodeProblem } from "./problem.ts";
import { ReadyNews } from "./ready-news.ts";
import type { Answerer } from "./questions.ts";
import { Body, bodyBytes, encode, headerBytes, type Header, Lane, maxBodyBytes, maxLearnBytes } from "./wire.ts";
import { readHeader, readLength, readText, Request, type RequestCode, Result } from "./wire.ts";

/** Blobs that one connection may have at once. */
const MAX_TOKENS = 1024;
/** Volume ids in one answer to Pins. */
const PINS_PER_REPLY = 250;

/** The blobs that a manager hands out; the blob cache is one. */
export interface BlobStore {
  /** @throws UllageError `not-found` */
  open(id: string): Promise<CachedBlob>;
  release(id: string): Promise<void>;
}

export interface ManagerHost {
  store: BlobStore;
  /** Makes sure that version-1 clients find the blob's range map. */
  legacyMap(blob: CachedBlob): { release(): void };
  /** Absent: blobs are neither found nor made for anybody. */
  answerer?: Answerer;
  /** The peer may name any source: it could read it by itself. */
  trusted: boolean;
  /** The peer broke the protocol. */
  refused(reason: string): void;
}

/** A blob that the client has, by one token. */
interface Held {
  blob: CachedBlob;
  /** what goes with it */
  ends: (() => void)[];
  watched: boolean;
}

interface Answer {
  body: Buffer;
  /** Descriptors to pass; closed when they are on their way. */
  descriptors?: number[];
  /** Descriptors to pass that stay the blob's. */
  shared?: number[];
}

/**
 * One client of the blob manager. A token (generation << 32 | counter) stands for a blob on this connection only; one
 * that was not issued here, or was released, is answered with `generationMismatch`. Requests run beside each other, and
 * each is answered when it is done; when the connection ends, whatever is under way is given up.
 */
export class ManagerConnection {
  readonly #host: ManagerHost;
  readonly #held = new Map<bigint, Held>();
  readonly #running = new Map<bigint, AbortController>();
  readonly #opening = new Set<Promise<unknown>>();
  readonly #news = new ReadyNews((body) => this.#notify(body));
  #socket: MessageSocket | undefined;
  #ended = false;
  #tokens = 0;
  #notices = 0n;

  constructor(host: ManagerHost) {
    this.#host = host;
  }

  begin(socket: MessageSocket): void {
    this.#socket = socket;
  }

  receive(bytes: Buffer): void {
    const header = readHeader(bytes);
    const body = bytes.subarray(headerBytes);
    if (typeof header === "string") return this.#refuse(header);
    if (header.reply || header.request === Request.ready) return this.#refuse("a reply that nobody asked for");
    if (body.length !== (bodyBytes[header.request] ?? body.length)) {
      return this.#refuse(`request ${header.request} with a body of ${body.length} bytes`);
    }
    void this.#serve(header, body);
  }

  #refuse(reason: string): void {
    this.#host.refused(reason);
    this.#socket?.close();
  }

  /** Never rejects. */
  async #serve(header: Header, body: Buffer): Promise<void> {
    const work = this.#answer(header, body).catch((error: unknown) => failure(header, body, error));
    this.#opening.add(work);
    const { body: reply, descriptors = [], shared = [] } = await work;
    this.#opening.delete(work);
    try {
      // Version 1 knows no request without an answer.
      if (!this.#ended && (header.needReply || header.version === 1)) {
        this.#socket?.send(encode({ ...header, reply: true }, reply), [...descriptors, ...shared]);
      }
    } finally {
      for (const fd of descriptors) closeSync(fd);
      this.#socket?.answered();
    }
  }

  async #answer(header: Header, body: Buffer): Promise<Answer> {
    const { request } = header;
    if (request === Request.noop) return { body: Buffer.alloc(0) };
    if (request === Request.getBlob) return this.#getBlob(header, body);
    if (request === Request.cancel) return this.#cancel(body);
    if (request === Request.ask) return this.#ask(header, body);
    if (request === Request.fetchRange || request === Request.prefetch) return this.#fetch(header, body);
    if (request === Request.learn) return this.#learn(header, body);
    return this.#ofBlob(request, body);
  }

  // ---- blobs -------------------------------------------------------------------------------------------------------

  async #getBlob(header: Header, body: Buffer): Promise<Answer> {
    const generation = body.readUInt32LE(0);
    const id = readText(body.subarray(4));
    if (this.#held.size >= MAX_TOKENS) return blobRefused(constants.errno.EMFILE);
    if (!isId(id)) return blobRefused(constants.errno.ENOENT);
    const blob = await this.#host.store.open(id);
    const ends: (() => void)[] = [];
    try {
      if (this.#ended) throw new UllageError("closed", "the client is gone");
      const shared = blob.share();
      if (header.version === 1) {
        const map = this.#host.legacyMap(blob);
        ends.push(() => map.release());
      }
      const data = openSync(blob.file.path, "r"); // who reads only must not be able to write
      const token = (BigInt(generation) << 32n) | BigInt(++this.#tokens);
      this.#held.set(token, { blob, ends, watched: false });
      const reply = new Body().u64(token).u64(0).u32(0);
      if (header.version === 1) return { body: reply.done(), descriptors: [data] };
      return { body: reply.u64(blob.size).u32(blob.unitBytes).done(), descriptors: [data], shared: [shared.fd] };
    } catch (error) {
      for (const end of ends) end();
      await this.#host.store.release(id);
      throw error;
    }
  }

  /** What is about a blob as a whole. */
  async #ofBlob(request: RequestCode, body: Buffer): Promise<Answer> {
    const token = body.readBigUInt64LE(0);
    const held = this.#held.get(token);
    if (held === undefined) return result(token, Result.generationMismatch);
    const { blob } = held;
    if (request === Request.stat) return stat(token, blob);
    if (request === Request.pins) return pins(token, blob, body.readUInt32LE(8));
    if (request === Request.release) {
      this.#held.delete(token);
      await this.#letGo(held);
    } else if (request === Request.watch) {
      if (!held.watched) held.ends.push(this.#news.follow(token, blob));
      held.watched = true;
    } else if (request === Request.sync) {
      await blob.sync();
    } else if (request === Request.pin) {
      await blob.pin(volumeId(body));
    } else {
      await blob.unpin(volumeId(body));
    }
    return result(token, Result.success);
  }

  // ---- ranges ------------------------------------------------------------------------------------------------------

  async #fetch(header: Header, body: Buffer): Promise<Answer> {
    const token = body.readBigUInt64LE(0);
    const held = this.#held.get(token);
    if (held === undefined) return fetched(token, 0, Result.generationMismatch);
    const { blob } = held;
    const { start, length } = rangeOf(blob, body);
    const lane = header.request === Request.prefetch ? body.readUInt32LE(24) : undefined;
    if (lane !== undefined && lane !== Lane.readahead && lane !== Lane.background) {
      throw new UllageError("bad-lane", `there is no lane ${lane}`);
    }
    return this.#run(header.tag, async (signal) => {
      try {
        await blob.fetch(start, length, {
          background: lane === Lane.background,
          soon: lane === Lane.readahead,
          signal,
        });
        return fetched(token, length, Result.success);
      } catch (error) {
        if (signal.aborted) return fetched(token, 0, Result.cancelled);
        throw error;
      }
    });
  }

  /** What is learned is written into the blob's readiness; see `KnownZeros` for how long it may take. */
  async #learn(header: Header, body: Buffer): Promise<Answer> {
    const token = body.readBigUInt64LE(0);
    const blob = this.#held.get(token)?.blob;
    if (blob === undefined) return result(token, Result.generationMismatch);
    const { start, length } = rangeOf(blob, body);
    return this.#run(header.tag, async (signal) => {
      const learning = length > 0 ? blob.zeros?.learn(start, Math.min(length, maxLearnBytes)) : undefined;
      if (learning !== undefined) await orAborted(learning, signal).catch(() => undefined);
      return result(token, signal.aborted ? Result.cancelled : Result.success);
    });
  }

  /** Work that ends with the connection, and when the client cancels it. */
  async #run<T>(tag: bigint, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
    if (this.#running.has(tag)) throw new UllageError("bad-tag", `tag ${tag} is in use`);
    const controller = new AbortController();
    this.#running.set(tag, controller);
    try {
      return await work(controller.signal);
    } finally {
      this.#running.delete(tag);
    }
  }

  /** See questions.ts. Nothing of it is logged: sources may come with credentials. */
  async #ask(header: Header, body: Buffer): Promise<Answer> {
    const { answerer, trusted } = this.#host;
    if (answerer === undefined) {
      throw new UllageError("not-supported", "this blob manager makes no blobs for others", {
        hint: "use the socket of `ullage blobd`",
      });
    }
    const { name, asked } = readQuestion(body);
    const answer = await this.#run(header.tag, (signal) => answerer.answer(name, asked, { trusted, signal }));
    const json = Buffer.from(JSON.stringify(answer));
    if (json.length > maxBodyBytes - 4) throw new UllageError("too-long", "the answer does not fit into a message");
    return { body: Buffer.concat([new Body().u32(Result.success).done(), json]) };
  }

  /** The request that is cancelled is answered on its own. */
  async #cancel(body: Buffer): Promise<Answer> {
    const tag = body.readBigUInt64LE(0);
    const running = this.#running.get(tag);
    running?.abort(new UllageError("cancelled", "the client gave it up"));
    return result(tag, running === undefined ? Result.failure : Result.success);
  }

  #notify(body: Buffer): void {
    const header = {
      tag: ++this.#notices,
      request: Request.ready,
      version: 2,
      reply: false,
      needReply: false,
    } as const;
    this.#socket?.send(encode(header, body));
  }

  // ---- the end -----------------------------------------------------------------------------------------------------

  async #letGo({ blob, ends }: Held): Promise<void> {
    for (const end of ends.splice(0)) end();
    await this.#host.store.release(blob.id);
  }

  /** Gives up what is under way, and all blobs. May be called again. */
  async end(): Promise<void> {
    this.#ended = true;
    for (const controller of this.#running.values()) controller.abort(new UllageError("closed", "the client is gone"));
    await Promise.all(this.#opening);
    const held = [...this.#held.values()];
    this.#held.clear();
    await Promise.all(held.map((each) => this.#letGo(each)));
  }
}

function readQuestion(body: Buffer): { name: string; asked: unknown } {
  let raw: unknown;
  try {
    raw = JSON.parse(body.toString("utf8"));
  } catch {
    raw = undefined; // its text may have credentials in it
  }
  const { name, asked } = (raw ?? {}) as { name?: unknown; asked?: unknown };
  if (typeof name === "string" && typeof asked === "object" && asked !== null) return { name, asked };
  throw new UllageError("bad-question", "the question is no JSON object with a name and what is asked");
}

function stat(token: bigint, blob: CachedBlob): Answer {
  const { foregroundBytes, readaheadBytes, backgroundBytes, requests, errors } = blob.stats;
  const ahead = readaheadBytes + backgroundBytes;
  const body = new Body().u64(token).u32(Result.success);
  for (const figure of [blob.size, blob.readyBytes, foregroundBytes, ahead, requests, errors]) {
    body.u64(figure);
  }
  return { body: body.done() };
}

function pins(token: bigint, blob: CachedBlob, skip: number): Answer {
  const all = blob.pins.sort();
  const body = new Body().u64(token).u32(Result.success).u32(all.length);
  for (const id of all.slice(skip, skip + PINS_PER_REPLY)) body.bytes(Buffer.from(id, "hex"));
  return { body: body.done() };
}

/** What is asked about, as far as it lies in the blob. */
function rangeOf(blob: CachedBlob, body: Buffer): { start: number; length: number } {
  const start = readLength(body, 8);
  const count = readLength(body, 16);
  if (!(start <= blob.size) || !(count >= 0)) {
    throw new UllageError("bad-range", `blob ${blob.id} has ${blob.size} bytes, and no range ${start}+${count}`);
  }
  return { start, length: Math.min(count, blob.size - start) };
}

const volumeId = (body: Buffer): string => body.toString("hex", 8, 24);

function result(token: bigint, code: number): Answer {
  return { body: new Body().u64(token).u32(code).done() };
}

function fetched(token: bigint, count: number, code: number): Answer {
  return { body: new Body().u64(token).u64(count).u32(code).done() };
}

/** @param code errno */
function blobRefused(code: number): Answer {
  return { body: new Body().u64(0).u64(0).u32(code).done() };
}

/** What a request that threw is answered with; version 2 is told why. */
function failure(header: Header, body: Buffer, error: unknown): Answer {
  const answer = failed(header, body, error);
  if (header.version === 1) return answer;
  return { body: Buffer.concat([answer.body, encodeProblem(error)]) };
}

function failed(header: Header, body: Buffer, error: unknown): Answer {
  if (header.request === Request.ask) return { body: new Body().u32(Result.failure).done() };
  if (header.request === Request.getBlob) return blobRefused(errnoOf(error));
  const token = body.length >= 8 ? body.readBigUInt64LE(0) : 0n;
  const ranged = header.request === Request.fetchRange || header.request === Request.prefetch;
  return ranged ? fetched(token, 0, Result.failure) : result(token, Result.failure);
}

function errnoOf(error: unknown): number {
  if (error instanceof UllageError && error.code === "not-found") return constants.errno.ENOENT;
  const name = error instanceof IoError ? error.errno : ((error as NodeJS.ErrnoException).code ?? "EIO");
  return (constants.errno as Record<string, number>)[name] ?? constants.errno.EIO;
}
