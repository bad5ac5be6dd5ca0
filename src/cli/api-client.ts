import { existsSync } from "node:fs";
import { request } from "node:http";
import { join } from "node:path";
import { UllageError } from "../base/errors.ts";
import { parseListenAddress } from "../export/listen-address.ts";

/** Answers are pages; more than this is not an answer of Ullage. */
const maxAnswerBytes = 64 * 1024 * 1024;

/** Where the system service listens. */
const systemSocket = "/var/lib/ullage/api.sock";

export interface Call {
  method?: "GET" | "POST" | "PATCH" | "DELETE";
  body?: unknown;
}

/** Talks HTTP to a daemon over its unix socket. */
export class ApiClient {
  readonly #socketPath: string;

  private constructor(socketPath: string) {
    this.#socketPath = socketPath;
  }

  /**
   * Finds the daemon: the given address, else $ULLAGE_API, else ./ullage-data/api.sock, else the system service's.
   * @throws UllageError `no-daemon`, `api-tcp`, `listen-address`
   */
  static find(given: string | undefined): ApiClient {
    const named = given ?? (process.env["ULLAGE_API"] || undefined);
    if (named !== undefined) {
      const address = parseListenAddress(named);
      if (address.kind === "unix") return new ApiClient(address.path);
      throw new UllageError("api-tcp", `'${named}' is a TCP address: over TCP the API has no tokens yet`, {
        hint: "give --api unix:PATH",
      });
    }
    const candidates = [join(process.cwd(), "ullage-data", "api.sock"), systemSocket];
    const found = candidates.find((path) => existsSync(path));
    if (found !== undefined) return new ApiClient(found);
    throw new UllageError("no-daemon", `no daemon found: neither ${candidates.join(" nor ")} is there`, {
      hint: "start one with `ullage serve`, or say where it is with --api unix:PATH or $ULLAGE_API",
    });
  }

  /** @returns the answer's object @throws UllageError with the code, message and hint of the daemon's problem document */
  call<T>(path: string, { method = "GET", body }: Call = {}): Promise<T> {
    return new Promise((resolve, reject) => {
      const text = body === undefined ? undefined : JSON.stringify(body);
      const headers = text === undefined ? {} : { "content-type": "application/json" };
      // `localhost` keeps the Host header valid; the socket decides who answers.
      const outgoing = request(
        { socketPath: this.#socketPath, host: "localhost", path, method, headers, agent: false },
        (answer) => {
          const chunks: Buffer[] = [];
          let length = 0;
          answer.on("data", (chunk: Buffer) => {
            length += chunk.length;
            if (length > maxAnswerBytes) answer.destroy(new Error(`an answer of more than ${maxAnswerBytes} bytes`));
            else chunks.push(chunk);
          });
          answer.on("error", (error) => reject(this.#unreachable(error)));
          answer.on("end", () => {
            try {
              resolve(readAnswer(answer.statusCode ?? 0, Buffer.concat(chunks).toString()) as T);
            } catch (error) {
              reject(error);
            }
          });
        },
      );
      outgoing.on("error", (error) => reject(this.#unreachable(error)));
      outgoing.end(text);
    });
  }

  #unreachable(error: NodeJS.ErrnoException): UllageError {
    const where = `unix:${this.#socketPath}`;
    switch (error.code ?? "") {
      case "ENOENT":
      case "ECONNREFUSED":
        return new UllageError("no-daemon", `no daemon listens on ${where}`, {
          hint: "start one with `ullage serve`, or say where it is with --api unix:PATH or $ULLAGE_API",
        });
      case "EACCES":
        return new UllageError("no-daemon", `${where} is not open to user ${process.getuid?.()}`, {
          hint: "run this as the user who runs the daemon",
        });
      default:
        return new UllageError("no-answer", `the daemon on ${where} gave no answer`, {
          cause: error,
          hint: "look at the daemon's log",
        });
    }
  }
}

function readAnswer(status: number, text: string): unknown {
  const value: unknown = text === "" ? undefined : JSON.parse(text);
  if (status >= 200 && status < 300) return value;
  const { code, detail, hint } = (value ?? {}) as { code?: string; detail?: string; hint?: string };
  throw new UllageError(
    code ?? "no-answer",
    detail ?? `the daemon answered ${status}`,
    hint === undefined ? {} : { hint },
  );
}
