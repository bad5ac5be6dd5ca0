import { request as requestHttp, type IncomingMessage } from "node:http";
import { request as requestHttps } from "node:https";
import { UllageError } from "../base/errors.ts";
import { findApiServer, type ApiServer } from "./api-server.ts";
import { withSuggestion } from "./volume-names.ts";

/** Answers are pages; more than this is not an answer of Ullage. */
const maxAnswerBytes = 64 * 1024 * 1024;

export interface Call {
  method?: "GET" | "POST" | "PATCH" | "DELETE";
  body?: unknown;
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
      return await this.#ask<T>(path, call);
    } catch (error) {
      throw await withSuggestion(error, (other) => this.#ask(other));
    }
  }

  /** An answer without end, as it comes. @throws UllageError as `call` */
  async stream(path: string, signal: AbortSignal): Promise<AsyncIterable<Buffer>> {
    const answer = await this.#send(path, {}, signal);
    if (answer.statusCode !== 200) this.#read(answer, await this.#receive(answer));
    return answer;
  }

  async #ask<T>(path: string, call: Call = {}): Promise<T> {
    const answer = await this.#send(path, call);
    return this.#read(answer, await this.#receive(answer)) as T;
  }

  #send(path: string, { method = "GET", body }: Call, signal?: AbortSignal): Promise<IncomingMessage> {
    const { kind, target, headers: own } = this.#server;
    const request = kind === "https" ? requestHttps : requestHttp;
    const text = body === undefined ? undefined : JSON.stringify(body);
    const headers = { ...own, ...(text === undefined ? {} : { "content-type": "application/json" }) };
    const options = { ...target, path, method, headers, agent: false, ...(signal === undefined ? {} : { signal }) };
    return new Promise((resolve, reject) => {
      const outgoing = request(options, resolve);
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
    return new UllageError("no-answer", `the daemon on ${name} gave no answer`, {
      cause: error,
      hint:
        kind === "https"
          ? "look at the daemon's log; a certificate authority of your own goes into $NODE_EXTRA_CA_CERTS"
          : "look at the daemon's log",
    });
  }
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
