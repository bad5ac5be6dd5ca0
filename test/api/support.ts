import { writeFile } from "node:fs/promises";
import { request } from "node:http";
import { join } from "node:path";
import type { TestContext } from "node:test";
import { ApiListener } from "../../src/api/api-listener.ts";
import { buildApi } from "../../src/api/app.ts";
import type { Problem } from "../../src/api/problems.ts";
import type { Ullage, UllageOptions } from "../../src/daemon/ullage.ts";
import { atEnd, openUllage, temporaryDirectory } from "../daemon/support.ts";

export interface Answer<T> {
  status: number;
  headers: NodeJS.Dict<string | string[]>;
  body: T;
}

export interface CallOptions {
  method?: string;
  body?: unknown;
  headers?: Record<string, string>;
}

/** An API on a unix socket, over a data directory of its own, and an image to make volumes from. */
export interface TestApi {
  ullage: Ullage;
  socketPath: string;
  image: string;
  call<T>(path: string, options?: CallOptions): Promise<Answer<T>>;
  /** A call that must be answered with a problem document. */
  refused(path: string, options?: CallOptions): Promise<Problem>;
}

export async function startApi(t: TestContext, options: Partial<UllageOptions> = {}): Promise<TestApi> {
  const directory = await temporaryDirectory(t);
  const image = join(directory, "image.raw");
  await writeFile(image, Buffer.alloc(1_000_000, "image"));
  const ullage = await openUllage(t, options);
  const app = await buildApi(ullage, () => undefined);
  const socketPath = join(directory, "api.sock");
  const listener = await ApiListener.listen({ kind: "unix", path: socketPath }, (incoming, outgoing) =>
    app.routing(incoming, outgoing),
  );
  atEnd(t, () => listener.close());
  const call = <T>(path: string, more?: CallOptions): Promise<Answer<T>> => callSocket<T>(socketPath, path, more);
  return {
    ullage,
    socketPath,
    image,
    call,
    async refused(path, more) {
      const { status, headers, body } = await call<Problem>(path, more);
      if (!String(headers["content-type"]).startsWith("application/problem+json") || body.status !== status) {
        throw new Error(`no problem document: ${status} ${JSON.stringify(body)}`);
      }
      return body;
    },
  };
}

function callSocket<T>(
  socketPath: string,
  path: string,
  { method = "GET", body, headers = {} }: CallOptions = {},
): Promise<Answer<T>> {
  const text = typeof body === "string" || body === undefined ? body : JSON.stringify(body);
  const all = { ...(text === undefined ? {} : { "content-type": "application/json" }), ...headers };
  return new Promise((resolve, reject) => {
    const outgoing = request({ socketPath, path, method, headers: all, agent: false }, (answer) => {
      let received = "";
      answer.setEncoding("utf8");
      answer.on("data", (chunk: string) => (received += chunk));
      answer.on("end", () =>
        resolve({
          status: answer.statusCode ?? 0,
          headers: answer.headers,
          body: (received === "" ? undefined : JSON.parse(received)) as T,
        }),
      );
    });
    outgoing.on("error", reject);
    outgoing.end(text);
  });
}
