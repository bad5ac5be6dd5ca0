import { Readable } from "node:stream";
import { randomBytes } from "node:crypto";
import { UllageError } from "../base/errors.ts";
import type { Events, UllageEvent } from "../daemon/events.ts";
import { jobObject } from "./job-object.ts";

/*
 * Server-sent events (WHATWG HTML, section 9.2). Each stream has a position in the events that the daemon keeps and is given
 * them as fast as its client reads: nothing is queued for it beyond one lot. Who falls behind what is kept, or takes
 * nothing at all for a while, is cut off, and finds out by a `reset` when he comes back.
 *
 * An id is `LIFE-NUMBER`: the number of events so far, in this life of the process. To go on from an id is to begin at that
 * position; an id of another life says nothing.
 */

/** Streams at a time. */
const maxStreams = 64;
/** What a stream is given at a time. */
const lotEvents = 32;
/** What a client has not taken yet, beyond which it is given no more; the system's socket buffers come on top. */
const bufferedBytes = 16 * 1024;
/** Without events, a comment is sent this often, so that whoever is in between sees a live connection. */
const heartbeatMs = 15_000;
/** A client that took nothing over so many heartbeats is gone. */
const stalledBeats = 2;
/** How long clients should wait before they connect again, in milliseconds. */
const retryMs = 2000;

export class EventStreams {
  readonly #events: Events;
  readonly #life = randomBytes(4).toString("hex");
  readonly #streams = new Set<EventStream>();
  readonly #heartbeatMs: number;
  /** Every event is written out once, whoever gets it. */
  readonly #texts = new WeakMap<UllageEvent, string>();
  #heart: NodeJS.Timeout | undefined;

  constructor(events: Events, options: { heartbeatMs?: number } = {}) {
    this.#events = events;
    this.#heartbeatMs = options.heartbeatMs ?? heartbeatMs;
  }

  /**
   * @param lastId where the client left off; undefined: it begins now
   * @param revoked aborted, with a UllageError, when the client may not listen any more
   * @throws UllageError `too-many-streams`
   */
  open(lastId: string | undefined, revoked?: AbortSignal): Readable {
    if (this.#streams.size >= maxStreams) {
      throw new UllageError(
        "too-many-streams",
        `${maxStreams} clients listen to events, which is the most there may be`,
        {
          hint: "close one of them, or ask for the objects now and then instead",
        },
      );
    }
    const events = this.#events;
    const position = lastId === undefined ? events.end : this.#positionOf(lastId);
    const stream = new EventStream(events, position ?? events.end, {
      greeting: position === undefined ? this.#reset() : `retry: ${retryMs}\nid: ${this.#id(position)}\n\n`,
      text: (event, at) => this.#textOf(event, at),
    });
    this.#streams.add(stream);
    revoked?.addEventListener("abort", () => stream.finish(revoked.reason as UllageError));
    this.#heart ??= setInterval(() => this.#beat(), this.#heartbeatMs).unref();
    stream.once("close", () => {
      this.#streams.delete(stream);
      if (this.#streams.size > 0) return;
      clearInterval(this.#heart);
      this.#heart = undefined;
    });
    return stream;
  }

  /** @returns undefined when something has been missed */
  #positionOf(id: string): number | undefined {
    const [, life, number] = /^([0-9a-f]{8})-(\d{1,15})$/.exec(id) ?? [];
    const position = Number(number);
    const known = life === this.#life && position >= this.#events.first && position <= this.#events.end;
    return known ? position : undefined;
  }

  #reset(): string {
    const data = JSON.stringify({ reason: "events were missed: ask for the objects anew" });
    return `retry: ${retryMs}\nid: ${this.#id(this.#events.end)}\nevent: reset\ndata: ${data}\n\n`;
  }

  #textOf(event: UllageEvent, at: number): string {
    let text = this.#texts.get(event);
    if (text === undefined) {
      const data = event.name === "job" ? jobObject(event.data) : event.data;
      text = `id: ${this.#id(at + 1)}\nevent: ${event.name}\ndata: ${JSON.stringify(data)}\n\n`;
      this.#texts.set(event, text);
    }
    return text;
  }

  #id(position: number): string {
    return `${this.#life}-${position}`;
  }

  #beat(): void {
    for (const stream of this.#streams) stream.beat();
  }
}

interface StreamOptions {
  greeting: string;
  text: (event: UllageEvent, at: number) => string;
}

class EventStream extends Readable {
  readonly #events: Events;
  readonly #text: StreamOptions["text"];
  readonly #forget: () => void;
  #position: number;
  /** The client has taken what it was given. */
  #wanted = false;
  #takenSinceBeat = true;
  #stalledBeats = 0;

  constructor(events: Events, position: number, { greeting, text }: StreamOptions) {
    super({ highWaterMark: bufferedBytes });
    this.#events = events;
    this.#position = position;
    this.#text = text;
    this.push(greeting);
    this.#forget = events.onPublish(() => this.#published());
  }

  override _read(): void {
    this.#takenSinceBeat = true;
    this.#wanted = true;
    this.#give();
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    this.#forget();
    done(error);
  }

  #published(): void {
    if (this.#position < this.#events.first) this.#drop("it fell too far behind");
    else if (this.#wanted) this.#give();
  }

  #give(): void {
    const events = this.#events.read(this.#position, lotEvents);
    if (events.length === 0) {
      if (this.#events.closed) this.push(null);
      return;
    }
    const text = events.map((event, index) => this.#text(event, this.#position + index)).join("");
    this.#position += events.length;
    this.#wanted = false;
    this.push(text);
  }

  /** Cuts the client off when it has taken nothing for too long, or shows it that the connection is alive. */
  beat(): void {
    this.#stalledBeats = this.#takenSinceBeat ? 0 : this.#stalledBeats + 1;
    this.#takenSinceBeat = false;
    if (this.#stalledBeats >= stalledBeats) {
      this.#drop("it takes nothing");
    } else if (this.#wanted) {
      this.#wanted = false;
      this.push(": alive\n\n");
    }
  }

  /** The client is told why, and gets no more. */
  finish({ code, message, hint }: UllageError): void {
    this.#forget();
    this.#wanted = false;
    this.push(`event: closed\ndata: ${JSON.stringify({ code, detail: message, hint })}\n\n`);
    this.push(null);
  }

  #drop(why: string): void {
    this.destroy(new UllageError("stream-dropped", `a listener to events was cut off: ${why}`));
  }
}
