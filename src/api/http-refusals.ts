import {
  maxHeaderSize,
  STATUS_CODES,
  type IncomingMessage,
  type RequestListener,
  type Server,
  type ServerResponse,
} from "node:http";
import type { Duplex } from "node:stream";
import { problem, problemContentType, type Problem } from "./problems.ts";

/*
 * What is refused before it is a request: bytes that are no HTTP, headers that are too many or too slow, and what HTTP lets
 * clients ask for and this server does not do. Node would answer with a status and nothing else; here it is a problem
 * document like any other. Where the answer goes:
 *
 *     nothing under way on the connection              -> at once
 *     in the body of a request without an answer yet   -> at once, as that request's answer
 *     in the body of a request that is being answered  -> nowhere: the connection is cut
 *     behind a request that is not answered yet        -> behind its answer, so that nobody takes it for that
 *
 * Then the connection ends, and whatever else arrives on it is not looked at.
 */

/** How long a client that was refused may leave its end open, so that it can read why. */
const lingerMs = 5000;

interface Call {
  request: IncomingMessage;
  response: ServerResponse;
}

/** What Node's parser says of bytes that it can't take. */
type ParseError = Error & { code?: string; reason?: string; rawPacket?: Buffer; bytesParsed?: number };

/** Makes `handler` what answers a server's requests, and refuses by problem documents what never becomes one. */
export function answerRequests(server: Server, handler: RequestListener): void {
  /** the newest of each connection */
  const calls = new WeakMap<Duplex, Call>();
  const refused = new WeakSet<Duplex>();

  const take = (request: IncomingMessage, response: ServerResponse): void => {
    if (refused.has(request.socket)) {
      request.socket.destroy();
      return;
    }
    calls.set(request.socket, { request, response });
    const wrong = wrongHosts(request);
    if (wrong === undefined) handler(request, response);
    else answer(response, wrong);
  };
  server.on("request", take);
  server.on("checkContinue", take); // who may send a body is told so when that is known (time-limits.ts)
  server.on("checkExpectation", (request: IncomingMessage, response: ServerResponse) => {
    const { expect } = request.headers;
    const detail = `'Expect: ${expect}' is nothing that this server knows`;
    answer(response, problem(417, "bad-expectation", detail, "leave it out, or send `Expect: 100-continue`"));
  });
  server.on("connect", (_request: IncomingMessage, socket: Duplex) => {
    socket.on("error", () => undefined).resume();
    end(socket, problem(501, "unknown-method", "this server is no proxy: it takes no CONNECT", "ask it for paths"));
  });
  server.on("clientError", (error: ParseError, socket: Duplex) => {
    if (refused.has(socket)) return;
    refused.add(socket);
    const call = calls.get(socket);
    if (call === undefined || call.response.closed) {
      end(socket, problemOfBytes(error));
    } else if (call.request.complete) {
      call.response.once("close", () => end(socket, problemOfBytes(error)));
    } else if (call.response.headersSent || call.response.socket !== socket) {
      socket.destroy();
    } else {
      end(socket, problemOfBytes(error));
    }
  });
}

/** RFC 9112, section 3.2: exactly one Host, or none from HTTP/1.0. */
function wrongHosts({ rawHeaders, httpVersion }: IncomingMessage): Problem | undefined {
  const hosts = rawHeaders.filter((name, index) => index % 2 === 0 && name.toLowerCase() === "host").length;
  if (hosts === 1 || (hosts === 0 && httpVersion === "1.0")) return undefined;
  return problem(
    400,
    "malformed-request",
    `a request has one header Host, this one has ${hosts}`,
    "send the name or address that the client connects to, once",
  );
}

const otherVersion = problem(
  505,
  "http-version",
  "this server speaks HTTP/1.1 and HTTP/1.0",
  "let the client use HTTP/1.1",
);

function problemOfBytes({ code = "", reason, rawPacket, bytesParsed = 0 }: ParseError): Problem {
  const text = rawPacket?.toString("latin1") ?? "";
  const line = text.slice(bytesParsed === 0 ? 0 : text.lastIndexOf("\n", bytesParsed - 1) + 1); // that went wrong
  switch (code) {
    case "ERR_HTTP_REQUEST_TIMEOUT":
      return problem(408, "too-slow-request", "the headers of a request did not arrive in time", "send it again");
    case "HPE_HEADER_OVERFLOW":
      return problem(
        431,
        "too-large-headers",
        `the request's first line and headers have more than ${maxHeaderSize} bytes`,
        "leave headers out, cookies first, or shorten the path",
      );
    case "HPE_CHUNK_EXTENSIONS_OVERFLOW":
      return problem(413, "too-large-request", "the extensions of the body's chunks are too long", "leave them out");
    case "HPE_PAUSED_H2_UPGRADE":
      return otherVersion;
    case "HPE_INVALID_VERSION":
      if (reason !== "Invalid HTTP version") break; // what follows it is wrong
      return otherVersion;
    case "HPE_INVALID_METHOD":
      if (line.startsWith("\x16")) {
        return problem(400, "malformed-request", "this is TLS, and this server speaks plain HTTP", "use http://");
      }
      if (/^[\w!#$%&'*+.^`|~-]+ \S+ HTTP\/\d/.test(line)) {
        const hint = "GET /openapi.json lists what each path takes";
        return problem(501, "unknown-method", "there is no such method", hint);
      }
  }
  return problem(
    400,
    "malformed-request",
    `these bytes are no HTTP request${reason === undefined || reason === "" ? "" : `: ${reason}`}`,
    "look at what the client, or a proxy in between, sends",
  );
}

function answer(response: ServerResponse, refusal: Problem): void {
  response.writeHead(refusal.status, headersOf(refusal)).end(JSON.stringify(refusal));
}

/** The connection's last answer. */
function end(socket: Duplex, refusal: Problem): void {
  if (!socket.writable) {
    socket.destroy();
    return;
  }
  const head = Object.entries(headersOf(refusal)).map(([name, value]) => `${name}: ${value}\r\n`);
  const line = `HTTP/1.1 ${refusal.status} ${STATUS_CODES[refusal.status]}\r\n`;
  socket.end(`${line}${head.join("")}\r\n${JSON.stringify(refusal)}`);
  const timer = setTimeout(() => socket.destroy(), lingerMs);
  socket.once("close", () => clearTimeout(timer));
}

function headersOf(refusal: Problem): Record<string, string> {
  return {
    "content-type": problemContentType,
    "content-length": String(Buffer.byteLength(JSON.stringify(refusal))),
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    connection: "close",
  };
}
