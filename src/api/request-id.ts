import { randomBytes } from "node:crypto";
import type { IncomingMessage } from "node:http";

/** What goes into logs as it is. */
const acceptable = /^[A-Za-z0-9._-]{1,64}$/;

/** A request's name in answers and logs: the client's `x-request-id`, when it is a decent one, else a new one. */
export function requestIdOf({ headers }: IncomingMessage): string {
  const given = headers["x-request-id"];
  return typeof given === "string" && acceptable.test(given) ? given : randomBytes(8).toString("hex");
}
