import { parentPort, workerData } from "node:worker_threads";
import { UllageError } from "../base/errors.ts";
import { CatalogDatabase } from "./catalog-database.ts";
import type { CatalogCall, CatalogReply, CatalogStart } from "./catalog-protocol.ts";

/** The catalog's thread: runs one call after the other, in the order in which they arrive. */
const port = parentPort!;

let database: CatalogDatabase | undefined;
try {
  database = new CatalogDatabase((workerData as CatalogStart).path);
  port.postMessage({ id: 0, result: undefined } satisfies CatalogReply);
} catch (error) {
  port.postMessage({ id: 0, error: describe(error) } satisfies CatalogReply);
  port.close();
}

port.on("message", (call: CatalogCall) => {
  try {
    const method = database![call.method] as (...args: unknown[]) => unknown;
    const result = method.apply(database, call.args);
    port.postMessage({ id: call.id, result } satisfies CatalogReply);
  } catch (error) {
    port.postMessage({ id: call.id, error: describe(error) } satisfies CatalogReply);
  }
  if (call.method === "close") port.close();
});

function describe(error: unknown): NonNullable<CatalogReply["error"]> {
  const { message, errcode } = error as Error & { errcode?: number };
  if (!(error instanceof UllageError)) return { message, sqliteCode: errcode };
  const cause = error.cause instanceof Error ? `: ${error.cause.message}` : "";
  return { message: `${error.message}${cause}`, code: error.code, hint: error.hint };
}
