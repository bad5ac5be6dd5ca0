import type { IncomingHttpHeaders } from "node:http";
import net from "node:net";
import { UllageError } from "../base/errors.ts";

/*
 * Two attacks by web pages on a server that only this machine can reach:
 *
 * - DNS rebinding: evil.example, once loaded, resolves to 127.0.0.1, and the page talks to us as to its own origin. The
 *   browser still says `Host: evil.example`. An address can't be rebound, so addresses and `localhost` are taken; other
 *   names only when the operator has named them.
 * - Cross-site requests: any page may *send* a simple POST anywhere. The browser tells where from: `Origin`. No other
 *   origin than our own is taken; there are no CORS headers at all, so that no other page can read an answer either.
 */

/** @param names further host names of this server @throws UllageError `wrong-host`, `foreign-origin` */
export function demandOwnHost({ host, origin }: IncomingHttpHeaders, names: readonly string[]): void {
  const own = (name: string): boolean => isUnrebindable(name) || names.includes(name);
  const name = host === undefined ? undefined : hostNameOf(`http://${host}`);
  if (name === undefined || !own(name)) {
    throw new UllageError("wrong-host", `this server does not go by the name '${printable(host ?? "")}'`, {
      hint: "use its address, or start it with --api-host NAME",
    });
  }
  if (origin === undefined) return;
  const page = URL.canParse(origin) ? new URL(origin) : undefined;
  if (page?.host === new URL(`http://${host}`).host || names.includes(page?.hostname ?? "")) return;
  throw new UllageError("foreign-origin", `requests from pages of '${printable(origin)}' are not taken`, {
    hint: "a page that is served elsewhere can't use this API; behind a proxy, start the server with --api-host NAME",
  });
}

/** Whether no DNS answer can make a browser take this name for another machine's. */
function isUnrebindable(name: string): boolean {
  return name === "localhost" || net.isIPv4(name) || (name.startsWith("[") && net.isIPv6(name.slice(1, -1)));
}

/** In canonical spelling: lower case, addresses in their usual form. */
function hostNameOf(url: string): string | undefined {
  if (!URL.canParse(url)) return undefined;
  const { hostname, pathname, username, search } = new URL(url);
  return pathname === "/" && username === "" && search === "" ? hostname : undefined;
}

function printable(text: string): string {
  return text.slice(0, 100).replaceAll(/[^\x20-\x7e]/g, "?");
}
