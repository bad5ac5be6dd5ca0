import { lookup as resolveHost } from "node:dns/promises";
import type { LookupAddress, LookupOptions } from "node:dns";
import type { LookupFunction } from "node:net";
import { resolve as normalise } from "node:path";
import ipaddr from "ipaddr.js";
import { SourceError, UllageError } from "../base/errors.ts";

/*
 * Which sources somebody from outside may make Ullage read. Whoever names a source makes this machine send requests, with
 * this machine's view of the network: to the services on its loopback, to its neighbours, to the cloud's metadata service.
 *
 * An address is judged where it can't be exchanged afterwards: a host name when it is resolved for the connection that is
 * being made (there is no second resolution whose answer could differ), a redirect's target like the source itself, a file
 * by the name that the kernel gives the opened descriptor, behind all symbolic links. Every connection and every opening is
 * judged anew, so the policy holds for as long as a source is read.
 *
 *     entry              lets in
 *     public             http(s) and nbd(s) to any host, at public addresses
 *     example.org        the same to this host, at public and private addresses
 *     *.example.org      the same for every host below it, not for itself
 *     10.1.0.0/16, ::1   the same to these addresses, whatever the host is called
 *     file:/images       this file, or everything below this directory
 *     any                everything, local files and sockets included
 *
 * Special addresses (loopback, link-local and metadata, multicast, unspecified, reserved, tunnels) are let in by an entry
 * that names them and by `any`, never by a host's name: who may write names into a zone shall not get any further with it.
 */
export interface SourcePolicy {
  /**
   * As far as the address itself tells: its scheme, its host, an IP address in any spelling. Asks nobody.
   * @throws SourceError `source-forbidden`
   */
  check(url: URL): void;
  /** `check`, and the addresses that the host has just now, for who connects by way of somebody else. */
  checkResolved(url: URL): Promise<void>;
  /** @param path absolute @throws SourceError `source-forbidden` */
  checkFile(path: string): void;
  /** A unix socket: behind it may be anything. @throws SourceError `source-forbidden` */
  checkSocket(): void;
  /** For `net.connect`: resolves a host, and finds nothing but addresses that may be connected to. */
  readonly lookup: LookupFunction;
}

/** What is let in when nobody says otherwise. */
export const defaultSourceEntries: readonly string[] = ["public"];

/** Finds all addresses of a host. */
export type Resolver = (host: string, options: LookupOptions) => Promise<LookupAddress[]>;

type Address = ipaddr.IPv4 | ipaddr.IPv6;
type AddressClass = "public" | "private" | "special";

/** Addresses of clouds' metadata services that do not lie in a special range by themselves. */
const metadataAddresses = new Set(["168.63.129.16", "100.100.100.200", "fd00:ec2::254", "fd20:ce::254"]);

/**
 * @param entries see the table above
 * @param resolver finds all addresses of a host; default: as the system does
 * @throws UllageError `sources-allow` for an entry that is none
 */
export function sourcePolicy(entries: readonly string[], resolver: Resolver = resolveAll): SourcePolicy {
  const allowed = parseEntries(entries);

  const permits = (host: string | undefined, address: Address): boolean => {
    if (allowed.any || allowed.networks.some((network) => contains(network, address))) return true;
    const kind = classOf(address);
    if (kind === "public" && allowed.public) return true;
    return kind !== "special" && host !== undefined && namesHost(allowed, host);
  };

  const resolvePermitted = async (host: string, options: LookupOptions): Promise<LookupAddress[]> => {
    const found = await resolver(host, { ...options, all: true });
    const permitted = found.filter(({ address }) => ipaddr.isValid(address) && permits(host, ipaddr.parse(address)));
    if (permitted.length > 0) return permitted;
    const kinds = found.map(({ address }) => (ipaddr.isValid(address) ? classOf(ipaddr.parse(address)) : "unknown"));
    throw forbidden(`${host} has no address that is let in, only ${[...new Set(kinds)].join(" and ")} ones`);
  };

  const policy: SourcePolicy = {
    check(url) {
      if (!/^(http|nbd)s?:$/.test(url.protocol)) throw forbidden(`${url.protocol} is no http or nbd address`);
      const literal = literalAddress(url.hostname);
      if (literal !== undefined) {
        if (!permits(undefined, literal)) throw forbidden(`${url.host} is a ${classOf(literal)} address`);
        return;
      }
      // Where any address may turn up that is let in, the resolution decides.
      if (allowed.any || allowed.public || allowed.networks.length > 0 || namesHost(allowed, url.hostname)) return;
      throw forbidden(`${url.host} is no host that is let in`);
    },

    checkFile(path) {
      const name = normalise(path);
      const inside = (root: string): boolean => root === "/" || name === root || name.startsWith(`${root}/`);
      if (!allowed.any && !allowed.files.some(inside)) throw forbidden("it is a file of the server");
    },

    checkSocket() {
      if (!allowed.any) throw forbidden("it is a socket of the server");
    },

    lookup(host, options, callback) {
      resolvePermitted(host, options).then(
        (permitted) => {
          if (options.all === true) callback(null, permitted);
          else callback(null, permitted[0].address, permitted[0].family);
        },
        (error: NodeJS.ErrnoException) => callback(error, []),
      );
    },

    async checkResolved(url) {
      policy.check(url);
      if (literalAddress(url.hostname) === undefined) await resolvePermitted(url.hostname, {});
    },
  };
  return policy;
}

interface Allowed {
  any: boolean;
  public: boolean;
  hosts: Set<string>;
  /** `.example.org` of `*.example.org` */
  domains: string[];
  networks: [Address, number][];
  /** Absolute, normalised. */
  files: string[];
}

function parseEntries(entries: readonly string[]): Allowed {
  const allowed: Allowed = { any: false, public: false, hosts: new Set(), domains: [], networks: [], files: [] };
  for (const entry of entries) parseEntry(entry, allowed);
  return allowed;
}

function parseEntry(entry: string, allowed: Allowed): void {
  if (entry === "any" || entry === "public") {
    allowed[entry] = true;
    return;
  }
  const file = /^file:(?:\/\/)?(\/[^/].*|\/)$/.exec(entry)?.[1];
  if (file !== undefined && !file.includes("\0")) {
    allowed.files.push(normalise(file));
    return;
  }
  const network = parseNetwork(entry);
  if (network !== undefined) {
    allowed.networks.push(network);
    return;
  }
  const [, wildcard, name = ""] = /^(\*\.)?([^*/:@?#\s]+)$/.exec(entry) ?? [];
  // The parser spells names as addresses will have them: lower case, xn--, and numbers as what they are.
  const host = URL.parse(`http://${name}/`)?.hostname ?? "";
  if (host === "" || literalAddress(host) !== undefined) throw badEntry(entry);
  if (wildcard === undefined) allowed.hosts.add(withoutDot(host));
  else allowed.domains.push(`.${withoutDot(host)}`);
}

function parseNetwork(entry: string): [Address, number] | undefined {
  const { IPv4, IPv6 } = ipaddr;
  if (IPv4.isValidCIDRFourPartDecimal(entry) || IPv6.isValidCIDR(entry)) return ipaddr.parseCIDR(entry);
  if (IPv4.isValidFourPartDecimal(entry)) return [IPv4.parse(entry), 32];
  return IPv6.isValid(entry) ? [IPv6.parse(entry), 128] : undefined;
}

function namesHost({ hosts, domains }: Allowed, hostname: string): boolean {
  const host = withoutDot(hostname.toLowerCase());
  return hosts.has(host) || domains.some((domain) => host.endsWith(domain) && host.length > domain.length);
}

const withoutDot = (host: string): string => host.replace(/\.$/, "");

/** `[::1]` and `127.0.0.1`; the URL parser has turned every other spelling of an address into one of these. */
function literalAddress(hostname: string): Address | undefined {
  const text = hostname.startsWith("[") ? hostname.slice(1, -1) : hostname;
  return ipaddr.IPv4.isValidFourPartDecimal(text) || ipaddr.IPv6.isValid(text) ? ipaddr.parse(text) : undefined;
}

function contains([network, bits]: [Address, number], address: Address): boolean {
  const inner = embedded(address);
  if (inner !== undefined && contains([network, bits], inner)) return true;
  return network.kind() === address.kind() && address.match(network, bits);
}

function classOf(address: Address): AddressClass {
  const inner = embedded(address);
  if (inner !== undefined) return classOf(inner);
  if (metadataAddresses.has(address.toString())) return "special";
  const range = address.range();
  if (range === "private" || range === "carrierGradeNat" || range === "uniqueLocal") return "private";
  if (range !== "unicast") return "special";
  // Of IPv6 only 2000::/3 is in use: all else is reserved, whatever it may become.
  return address instanceof ipaddr.IPv4 || address.parts[0] >> 13 === 1 ? "public" : "special";
}

/**
 * The IPv4 address that an IPv6 address really leads to: mapped (::ffff:0:0/96), translated (::ffff:0:0:0/96), compatible
 * (::/96), and by way of NAT64 (64:ff9b::/96). Other translators' prefixes can't be told from public addresses, or, like
 * 64:ff9b:1::/48 and 6to4, are special as a whole.
 */
function embedded(address: Address): ipaddr.IPv4 | undefined {
  if (address instanceof ipaddr.IPv4) return undefined;
  const [a, b, c, d, e, f, high, low] = address.parts;
  const mapped = a === 0 && b === 0 && c === 0 && d === 0 && e === 0 && f === 0xffff;
  const translated = a === 0 && b === 0 && c === 0 && d === 0 && e === 0xffff && f === 0;
  const compatible = a === 0 && b === 0 && c === 0 && d === 0 && e === 0 && f === 0 && (high > 0 || low > 1);
  const nat64 = a === 0x64 && b === 0xff9b && c === 0 && d === 0 && e === 0 && f === 0;
  if (!mapped && !translated && !compatible && !nat64) return undefined;
  return new ipaddr.IPv4([high >> 8, high & 0xff, low >> 8, low & 0xff]);
}

function resolveAll(host: string, options: LookupOptions): Promise<LookupAddress[]> {
  return resolveHost(host, { ...options, all: true });
}

function forbidden(why: string): SourceError {
  return new SourceError("source-forbidden", `this source is not allowed over the network: ${why}`, {
    transient: false,
    hint: "ask over the unix socket, or let the operator name it in `sources.allow`",
  });
}

function badEntry(entry: string): UllageError {
  return new UllageError("sources-allow", `'${entry}' in sources.allow names no sources`, {
    hint: "write public, any, example.org, *.example.org, 10.1.0.0/16, 192.0.2.7 or file:/images",
  });
}
