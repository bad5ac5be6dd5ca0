import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { request as requestHttp, type ClientRequest, type IncomingMessage, type RequestOptions } from "node:http";
import { request as requestHttps } from "node:https";
import { systemClock } from "../base/clock.ts";
import { UllageError } from "../base/errors.ts";
import { findApiServer, type ApiServer } from "./api-server.ts";
import { withSuggestion } from "./volume-names.ts";

/** Answers are pages; more than this is not an answer of Ullage. */
const maxAnswerBytes = 64 * 1024 * 1024;

/** Before each of the requests that follow one without an answer. A daemon that was killed is back within seconds. */
const retryMs = [250, 500, 1000, 2000, 4000, 8000];

/** How long an upload waits to be let in before it begins. */
const continueMs = 2000;

export interface Call {
  method?: "GET" | "POST" | "PATCH" | "DELETE";
  body?: unknown;
  /**
   * It makes something, under an `Idempotency-Key`, this one or a new one: when the connection breaks before an answer, it is
   * sent again.
   */
  once?: boolean | string;
  /** It follows an answer of the daemon and may be done twice: it is sent again, and waits for a daemon that is away. */
  follows?: boolean;
}

/** What an upload sends. */
export interface UploadBody {
  /** Ended early when the daemon answers before the end. */
  open(): Promise<AsyncIterable<Buffer>>;
  /** Whether it can be opened once more, after the connection broke. */
  canRepeat(): boolean;
}

/** Talks HTTP to a daemon, over its unix socket or TCP. */
export class ApiClient {
  readonly #server: ApiServer;

  private constructor(server: ApiServer) {
    this.#server = server;
  }

  /** See `findApiServer`. @throws UllageError `no-daemon`, `bad-api`, `token-file` */
  static find(given: string | undefined, tokenFile?: string): ApiClient {
    return new ApiClient(findApiServer(given, tokenFile));
  }

  /** @returns the answer's object @throws UllageError with the code, message and hint of the daemon's problem document */
  async call<T>(path: string, call?: Call): Promise<T> {
    try {
      const { once: key = false, follows = false } = call ?? {};
      if (key === false && !follows) return await this.#ask<T>(path, call);
      const headers = key === false ? {} : keyHeader(key === true ? randomUUID() : key);
      return await untilAnswered(() => this.#ask<T>(path, call, headers), { wasThere: follows });
    } catch (error) {
      throw await withSuggestion(error, (other) => this.#ask(other));
    }
  }

  /**
   * An answer of any length, as it comes; whoever reads it meets an error of the connection as it is.
   * @param accept the content type that is wanted
   * @throws UllageError as `call`
   */
  async stream(path: string, signal: AbortSignal, accept = "*/*"): Promise<AsyncIterable<Buffer>> {
    try {
      const answer = await this.#send(path, { headers: { accept } }, signal);
      if (answer.statusCode !== 200) this.#read(answer, await this.#receive(answer));
      return answer;
    } catch (error) {
      throw await withSuggestion(error, (other) => this.#ask(other));
    }
  }

  /**
   * Sends a body of any length, once the daemon lets it come. What it answers before the end, a refusal, ends the sending.
   * When the connection breaks and the body can be had again, all is sent again, under the same `Idempotency-Key`.
   * @returns the answer's object @throws UllageError as `call`, and whatever the body throws
   */
  upload<T>(path: string, type: string, body: UploadBody): Promise<T> {
    const key = keyHeader(randomUUID());
    const attempt = async (): Promise<T> => this.#uploadOnce(path, { ...key, "content-type": type }, await body.open());
    return untilAnswered(attempt, { mayRepeat: () => body.canRepeat() });
  }

  async #uploadOnce<T>(path: string, about: Record<string, string>, body: AsyncIterable<Buffer>): Promise<T> {
    // Kept alive, because a connection that closes behind the answer could break what is still being sent, and lose it.
    const kept = { connection: "keep-alive", expect: "100-continue" };
    const headers = { ...about, "transfer-encoding": "chunked", ...kept };
    const outgoing = this.#request(path, { method: "PUT", headers });
    let answered = false;
    const answer = new Promise<IncomingMessage>((resolve, reject) => {
      outgoing.on("response", resolve);
      outgoing.on("error", (error) => reject(this.#unreachable(error)));
    }).finally(() => (answered = true));
    answer.catch(() => undefined); // met below
    /** @returns when it came, or the answer, which also says that the connection broke */
    const orAnswer = (event: string): Promise<unknown> =>
      Promise.race([once(outgoing, event).catch(() => answer), answer]);
    outgoing.flushHeaders();
    try {
      // Something in between may keep the permission to itself.
      const waiting = new AbortController();
      const patience = systemClock.sleep(continueMs, waiting.signal).catch(() => undefined);
      await Promise.race([orAnswer("continue"), patience]).finally(() => waiting.abort());
      for await (const chunk of body) {
        if (answered) break;
        if (!outgoing.write(chunk)) await orAnswer("drain");
      }
      if (!answered) outgoing.end();
      const incoming = await answer;
      return this.#read(incoming, await this.#receive(incoming)) as T;
    } finally {
      outgoing.destroy();
    }
  }

  async #ask<T>(path: string, call: Call = {}, headers: Record<string, string> = {}): Promise<T> {
    const answer = await this.#send(path, { ...call, headers });
    return this.#read(answer, await this.#receive(answer)) as T;
  }

  #request(
    path: string,
    { headers, ...options }: Omit<RequestOptions, "headers"> & { headers: Record<string, string> },
  ): ClientRequest {
    const { kind, target, headers: own } = this.#server;
    const request = kind === "https" ? requestHttps : requestHttp;
    return request({ ...target, path, agent: false, ...options, headers: { ...own, ...headers } });
  }

  #send(
    path: string,
    { method = "GET", body, headers }: Call & { headers?: Record<string, string> },
    signal?: AbortSignal,
  ): Promise<IncomingMessage> {
    const text = body === undefined ? undefined : JSON.stringify(body);
    const type = text === undefined ? {} : { "content-type": "application/json" };
    const options = { method, headers: { ...headers, ...type }, ...(signal === undefined ? {} : { signal }) };
    return new Promise((resolve, reject) => {
      const outgoing = this.#request(path, options);
      outgoing.on("response", resolve);
      outgoing.on("error", (error) => reject(this.#unreachable(error)));
      outgoing.end(text);
    });
  }

  async #receive(answer: IncomingMessage): Promise<string> {
    try {
      return await receive(answer);
    } catch (error) {
      throw this.#unreachable(error as Error);
    }
  }

  #read({ statusCode = 0, headers }: IncomingMessage, text: string): unknown {
    if (text !== "" && !/^application\/(problem\+)?json\b/.test(headers["content-type"] ?? "")) {
      throw new UllageError("no-answer", `what answers on ${this.#server.name} (${statusCode}) is not Ullage's API`, {
        hint: "look at the address, and at the proxy in front of the daemon if there is one",
      });
    }
    const value: unknown = text === "" ? undefined : JSON.parse(text);
    // What is no problem document is an answer: health tells with 503 what is wrong.
    const succeeded = statusCode >= 200 && statusCode < 300;
    if (succeeded || /^application\/json\b/.test(headers["content-type"] ?? "")) return value;
    const { code, detail, hint } = (value ?? {}) as { code?: string; detail?: string; hint?: string };
    // A value with a rule of its own, such as a name: where it stood in the request says nothing to who typed a command.
    const rule = /^(?:body|querystring|params)\/\w+: (.*)/s.exec(code === "bad-request" ? (detail ?? "") : "")?.[1];
    if (rule !== undefined) {
      throw new UllageError("usage", rule, { hint: "`--help` behind the command says what it takes" });
    }
    throw new UllageError(
      code ?? "no-answer",
      detail ?? `the daemon answered ${statusCode}`,
      hint === undefined ? {} : { hint: code === "no-token" ? tokenHint : hint },
    );
  }

  #unreachable(error: NodeJS.ErrnoException): UllageError {
    const { name, kind } = this.#server;
    const code = error.code ?? "";
    if (code === "ENOENT" || code === "ECONNREFUSED") {
      return new UllageError("no-daemon", `no daemon listens on ${name}`, {
        hint: "start one with `ullage serve`, or say where it is with --api unix:PATH or $ULLAGE_API",
      });
    }
    if (code === "EACCES" && kind === "unix") {
      return new UllageError("no-daemon", `${name} is not open to user ${process.getuid?.()}`, {
        hint: "run this as the user who runs the daemon",
      });
    }
    if (code.startsWith("HPE_")) {
      return new UllageError("no-answer", `what listens on ${name} speaks no HTTP`, {
        hint: "give the address of the API, not that of NBD: `ullage serve` prints both when it starts",
      });
    }
    return new UllageError("no-answer", `the daemon on ${name} gave no answer`, {
      cause: error,
      hint:
        kind === "https"
          ? "look at the daemon's log; a certificate authority of your own goes into $NODE_EXTRA_CA_CERTS"
          : "look at the daemon's log",
    });
  }
}

/**
 * A daemon that is killed in between, or restarted, is asked again, with growing pauses.
 * @param options.wasThere there was one a moment ago: one that is away will be back
 * @param options.mayRepeat whether it can be asked again
 */
async function untilAnswered<T>(
  attempt: () => Promise<T>,
  { wasThere = false, mayRepeat = () => true }: { wasThere?: boolean; mayRepeat?: () => boolean },
): Promise<T> {
  let expected = wasThere;
  for (let retry = 0; ; retry++) {
    try {
      return await attempt();
    } catch (error) {
      expected ||= isBroken(error);
      const isAway = expected && error instanceof UllageError && error.code === "no-daemon";
      if (retry === retryMs.length || !(isBroken(error) || isAway) || !mayRepeat()) throw error;
    }
    await systemClock.sleep(retryMs[retry]);
  }
}

function keyHeader(key: string): Record<string, string> {
  return { "idempotency-key": key };
}

/**
 * Whether a request ended before it was answered, so that it may have been done: the connection broke, or the daemon has
 * noticed the same, or is being stopped.
 */
export function isBroken(error: unknown): boolean {
  if (!(error instanceof UllageError)) return false;
  if (error.code === "transfer-cut" || error.code === "stopping") return true;
  const cause = (error.cause as NodeJS.ErrnoException | undefined)?.code ?? "";
  return error.code === "no-answer" && ["ECONNRESET", "EPIPE"].includes(cause);
}

const tokenHint =
  "give one with --token-file FILE or $ULLAGE_TOKEN; `ullage token create` on the daemon's machine makes it";

async function receive(answer: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of answer as AsyncIterable<Buffer>) {
    length += chunk.length;
    if (length > maxAnswerBytes) throw new Error(`an answer of more than ${maxAnswerBytes} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString();
}
