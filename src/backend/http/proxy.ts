import ipaddr from "ipaddr.js";

/** The proxy for an address, and whether the direct way may be tried when it fails; undefined: none. */
export type ProxyChoice = (url: URL) => { url: string; fallback: boolean } | undefined;

type Environment = Readonly<Record<string, string | undefined>>;

/** Always the same proxy, but not for this machine itself. */
export function fixedProxy(proxy: string, fallback: boolean): ProxyChoice {
  return (url) => (isLoopback(url.hostname) ? undefined : { url: proxy, fallback });
}

/**
 * What HTTP_PROXY, HTTPS_PROXY and NO_PROXY say (or their lower-case names, which go first). NO_PROXY lists hosts, domains
 * (with or without a leading dot, subdomains included), addresses, networks, each with or without a port; `*` is all.
 */
export function environmentProxy(env: Environment): ProxyChoice {
  const read = (name: string): string | undefined => env[name] || env[name.toUpperCase()] || undefined;
  return (url) => {
    const proxy = read(url.protocol === "https:" ? "https_proxy" : "http_proxy");
    if (proxy === undefined || isLoopback(url.hostname)) return undefined;
    const exceptions = (read("no_proxy") ?? "").split(/[\s,]+/).filter((entry) => entry !== "");
    if (exceptions.some((entry) => matches(entry, url))) return undefined;
    const address = /^https?:\/\//i.test(proxy) ? proxy : `http://${proxy}`;
    return URL.canParse(address) ? { url: address, fallback: true } : undefined;
  };
}

function matches(entry: string, url: URL): boolean {
  if (entry === "*") return true;
  const host = bare(url.hostname);
  if (ipaddr.isValid(host)) {
    if (ipaddr.isValidCIDR(entry)) {
      const address = ipaddr.parse(host);
      const [network, bits] = ipaddr.parseCIDR(entry);
      return address.kind() === network.kind() && address.match(network, bits);
    }
    if (ipaddr.isValid(bare(entry))) return ipaddr.parse(bare(entry)).toString() === ipaddr.parse(host).toString();
  }
  const [, name, port] = /^(.*?)(?::(\d+))?$/.exec(entry.toLowerCase())!;
  if (port !== undefined && port !== (url.port || (url.protocol === "https:" ? "443" : "80"))) return false;
  const domain = name.replace(/^\*?\./, "");
  return host === domain || host.endsWith(`.${domain}`);
}

const bare = (hostname: string): string => hostname.replace(/^\[(.*)\]$/, "$1").replace(/\.$/, "");

/** Whether a host is this machine by its name or address alone. */
export function isLoopback(hostname: string): boolean {
  const host = bare(hostname);
  if (host === "localhost" || host.endsWith(".localhost")) return true;
  return ipaddr.isValid(host) && ipaddr.process(host).range() === "loopback";
}
