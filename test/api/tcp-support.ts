import { execFile } from "node:child_process";
import { connect } from "node:net";
import { join } from "node:path";
import type { TestContext } from "node:test";
import { promisify } from "node:util";
import type { FastifyInstance } from "fastify";
import { ApiListener, type ApiListenerOptions } from "../../src/api/api-listener.ts";
import { buildApi, type ApiOptions } from "../../src/api/app.ts";
import type { Problem } from "../../src/api/problems.ts";
import type { Scope } from "../../src/api/scopes.ts";
import { Tokens } from "../../src/api/tokens.ts";
import { systemClock, type Clock } from "../../src/base/clock.ts";
import type { LogFields, LogLevel } from "../../src/daemon/log.ts";
import type { Ullage } from "../../src/daemon/ullage.ts";
import { atEnd, openUllage, temporaryDirectory } from "../daemon/support.ts";

const timeout = 60_000;

export interface CurlAnswer {
  status: number;
  /** names in lower case */
  headers: Record<string, string>;
  text: string;
}

/** Paths as they are, and bodies at once. */
const quietly = ["-s", "-S", "-i", "-g", "--path-as-is", "-H", "Expect:"];

/** What curl got. @throws when there was no answer */
export async function curl(...args: string[]): Promise<CurlAnswer> {
  const { stdout } = await promisify(execFile)("curl", [...quietly, ...args], { timeout });
  const end = stdout.indexOf("\r\n\r\n");
  const [line, ...lines] = stdout.slice(0, end).split("\r\n");
  const headers = lines.map((header) => /^([^:]+): ?(.*)$/.exec(header)!.slice(1));
  return {
    status: Number(line.split(" ")[1]),
    headers: Object.fromEntries(headers.map(([name, value]) => [name.toLowerCase(), value])),
    text: stdout.slice(end + 4),
  };
}

/** `401 no-token` */
export function refusal({ status, headers, text }: CurlAnswer): string {
  if (!headers["content-type"]?.startsWith("application/problem+json")) return `${status} without a problem document`;
  return `${status} ${(JSON.parse(text) as Problem).code}`;
}

export interface LogLine {
  level: LogLevel;
  message: string;
  fields: LogFields;
}

/** An API on TCP and on a unix socket, over a data directory of its own. */
export interface TcpApi {
  ullage: Ullage;
  app: FastifyInstance;
  tokens: Tokens;
  port: number;
  /** `http://127.0.0.1:PORT` */
  origin: string;
  socketPath: string;
  log: LogLine[];
  /** Puts the clock that tokens go by forward. */
  advance(ms: number): void;
  token(scope: Scope, lifeSeconds?: number): Promise<string>;
  /** curl with a token of this scope */
  as(scope: Scope, path: string, ...args: string[]): Promise<CurlAnswer>;
  /** Sends bytes over a connection of its own, and resolves with all that came back when the server closed it. */
  raw(text: string): Promise<string>;
}

export async function startTcpApi(
  t: TestContext,
  options: ApiOptions & ApiListenerOptions & { prepare?: (app: FastifyInstance) => void } = {},
): Promise<TcpApi> {
  const ullage = await openUllage(t);
  let ahead = 0;
  const wallTime = (): string => new Date(Date.now() + ahead).toISOString();
  const clock: Clock = { ...systemClock, wallTime };
  const tokens = await Tokens.open(ullage.health().dataDirectory, { clock });
  const log: LogLine[] = [];
  const app = await buildApi(ullage, (level, message, fields = {}) => log.push({ level, message, fields }), {
    tokens,
    ...options,
  });
  const handler = app.routing.bind(app);
  const listener = await ApiListener.listen({ kind: "tcp", host: "127.0.0.1", port: 0 }, handler, options);
  atEnd(t, () => listener.close());
  const socketPath = join(await temporaryDirectory(t), "api.sock");
  const unix = await ApiListener.listen({ kind: "unix", path: socketPath }, handler, options);
  atEnd(t, () => unix.close());
  const { port } = listener.address as { port: number };
  const origin = `http://127.0.0.1:${port}`;
  const made = new Map<Scope, string>();
  const token = async (scope: Scope, lifeSeconds?: number): Promise<string> =>
    (await tokens.create(`${scope}-${tokens.list().length}`, scope, lifeSeconds ?? null)).secret;
  return {
    ullage,
    app,
    tokens,
    port,
    origin,
    socketPath,
    log,
    advance: (ms) => (ahead += ms),
    token,
    async as(scope, path, ...args) {
      if (!made.has(scope)) made.set(scope, await token(scope));
      return curl(`${origin}${path}`, "-H", `Authorization: Bearer ${made.get(scope)}`, ...args);
    },
    raw(text) {
      return new Promise((resolve) => {
        let received = "";
        const socket = connect(port, "127.0.0.1", () => socket.write(text));
        socket.on("data", (chunk: Buffer) => (received += chunk.toString("latin1")));
        socket.on("error", () => undefined); // a reset is an end, too
        socket.on("close", () => resolve(received));
      });
    },
  };
}

export const json = (method: string, body: object): string[] => [
  "-X",
  method,
  "-H",
  "Content-Type: application/json",
  "-d",
  JSON.stringify(body),
];
