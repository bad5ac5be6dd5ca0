import {
  addresses,
  boolean,
  byteSize,
  credentialReference,
  endpoint,
  percentage,
  fileMode,
  group,
  hostNames,
  oneOf,
  path,
  proxyAddress,
  rate,
  seconds,
  sourceEntries,
  sourcePrefix,
  filePrefixes,
  sourcePrefixes,
  unixAddress,
  word,
  type Kind,
} from "./kinds.ts";

/** A key of the configuration file. */
export interface ConfigKey {
  /** Where it stands: `tls.mode` is `mode` in the table `[tls]`, `sources.match[].prefix` in each `[[sources.match]]`. */
  readonly key: string;
  readonly kind: Kind;
  /** The attribute of the options of `serve` that it sets. */
  readonly option: string;
  /** The flag that overrides it; undefined when only the file can say it. */
  readonly flag?: string;
  /** What holds when nothing is said, for people. */
  readonly fallback: string;
  readonly meaning: string;
  /** Of the tables in a list: each must have it. */
  readonly required?: true;
  /** Of the tables in `sources.match`: it means something for files, too, or for nothing else. */
  readonly forFiles?: true | "only";
}

/** All that `serve --config FILE` understands; docs/CONFIG.md and `ullage help config` list the same. */
export const configKeys: readonly ConfigKey[] = [
  {
    key: "data",
    kind: path,
    option: "data",
    flag: "--data",
    fallback: "./ullage-data; for a system service its state directory",
    meaning: "the data directory",
  },
  {
    key: "api",
    kind: addresses,
    option: "api",
    flag: "--api",
    fallback: "127.0.0.1:7070 and unix:<data>/api.sock",
    meaning: "where the API listens",
  },
  {
    key: "apiAuth",
    kind: oneOf("token", "off"),
    option: "apiAuth",
    flag: "--api-auth",
    fallback: '"token"',
    meaning: "whether the API takes a token on TCP; off: on loopback only",
  },
  {
    key: "apiHosts",
    kind: hostNames,
    option: "apiHost",
    flag: "--api-host",
    fallback: "none",
    meaning: "further names that the API goes by on TCP, such as that of a proxy in front of it",
  },
  {
    key: "nbd",
    kind: addresses,
    option: "nbd",
    flag: "--nbd",
    fallback: "127.0.0.1:10809 and unix:<data>/nbd.sock",
    meaning: "where NBD listens",
  },
  {
    key: "blobs",
    kind: unixAddress,
    option: "blobs",
    flag: "--blobs",
    fallback: "none: the cache is in the data directory",
    meaning: "the socket of a blob manager (ullage blobd) whose cache is used, and who reads the sources",
  },
  {
    key: "unsafeFileSystem",
    kind: boolean,
    option: "unsafeFileSystem",
    flag: "--unsafe-file-system",
    fallback: "false",
    meaning: "use a data directory on which locks keep nobody out (9p, virtiofs, FUSE, NFS)",
  },
  {
    key: "socketMode",
    kind: fileMode,
    option: "socketMode",
    fallback: '"0600"',
    meaning: "permissions of the unix sockets, API and NBD alike: who may open the API's may do everything",
  },
  {
    key: "socketGroup",
    kind: group,
    option: "socketGroup",
    fallback: "the daemon's own group",
    meaning: "the group of the unix sockets",
  },
  {
    key: "tls.mode",
    kind: oneOf("off", "on", "require"),
    option: "tls",
    flag: "--tls",
    fallback: '"on" when there are certificates or keys, else "off"',
    meaning: "TLS on NBD",
  },
  {
    key: "tls.certs",
    kind: path,
    option: "tlsCerts",
    flag: "--tls-certs",
    fallback: "none",
    meaning: "a directory with ca-cert.pem, server-cert.pem and server-key.pem",
  },
  {
    key: "tls.psk",
    kind: path,
    option: "tlsPsk",
    flag: "--tls-psk",
    fallback: "none",
    meaning: "a file of pre-shared keys: lines of user:hex",
  },
  {
    key: "tls.verifyPeer",
    kind: boolean,
    option: "tlsVerifyPeer",
    flag: "--tls-verify-peer",
    fallback: "false",
    meaning: "let in only clients whose certificate ca-cert.pem has signed",
  },
  {
    key: "sources.allow",
    kind: sourceEntries,
    option: "allowSources",
    fallback: '["public"]',
    meaning: "which sources may be named over TCP, see below; over the unix socket any may",
  },
  {
    key: "cache.capacity",
    kind: byteSize,
    option: "cacheCapacity",
    flag: "--cache-capacity",
    fallback: "what the file system has, less the reserve",
    meaning: "bytes on disk that the cache may take; what no volume needs goes first, least recently used",
  },
  {
    key: "cache.reserve",
    kind: percentage,
    option: "cacheReserve",
    fallback: "5",
    meaning: "percentage of the file system that the cache leaves free; 1 GiB at most where clients wait for bytes",
  },
  {
    key: "sources.limit",
    kind: rate,
    option: "sourceLimit",
    fallback: "none",
    meaning: "what all sources together may deliver; `ullage source limit` changes it while Ullage runs",
  },
  {
    key: "sources.match[].prefix",
    kind: sourcePrefix,
    option: "sourceSettings",
    fallback: "must be given",
    meaning:
      "the sources that this table is about: those whose address or path begins like this; the longest prefix counts",
    required: true,
    forFiles: true,
  },
  {
    key: "sources.match[].endpoint",
    kind: endpoint,
    option: "sourceSettings",
    fallback: "the provider's own, or what its environment variable says",
    meaning: "where the store or registry is; for oci the only way to plain http on other machines",
  },
  {
    key: "sources.match[].region",
    kind: word,
    option: "sourceSettings",
    fallback: "what the environment says, else us-east-1 (s3), or what the endpoint says (oss)",
    meaning: "the region that signatures are for; s3 learns a bucket's own by itself",
  },
  {
    key: "sources.match[].pathStyle",
    kind: boolean,
    option: "sourceSettings",
    fallback: "true for s3 with an endpoint and for oss at an address, else false",
    meaning: "the bucket in the path, not in front of the host",
  },
  {
    key: "sources.match[].signature",
    kind: oneOf("v1", "v4"),
    option: "sourceSettings",
    fallback: '"v4" where the region is known, else "v1"',
    meaning: "how requests to oss are signed",
  },
  {
    key: "sources.match[].credentials",
    kind: credentialReference,
    option: "sourceSettings",
    fallback: "the standard ones of the provider, see docs/SOURCES.md",
    meaning:
      "where credentials are read, again and again: env:PREFIX_, file:/path, helper:/path, profile:NAME or anonymous",
  },
  {
    key: "sources.match[].ca",
    kind: path,
    option: "sourceSettings",
    fallback: "the system's authorities alone",
    meaning: "a file with certificates (PEM) of further authorities that the servers' certificates may be from",
  },
  {
    key: "sources.match[].mirrors",
    kind: sourcePrefixes,
    option: "sourceSettings",
    fallback: "none",
    meaning: "prefixes below which the same objects are; asked first, in this order",
  },
  {
    key: "sources.match[].alternatives",
    kind: filePrefixes,
    option: "sourceSettings",
    fallback: "none",
    meaning: "files: paths below which a file is looked for that is not below the prefix, or does not answer there",
    forFiles: "only",
  },
  {
    key: "sources.match[].proxy",
    kind: proxyAddress,
    option: "sourceSettings",
    fallback: "what HTTPS_PROXY, HTTP_PROXY and NO_PROXY say",
    meaning: "the HTTP proxy to go through",
  },
  {
    key: "sources.match[].proxyFallback",
    kind: boolean,
    option: "sourceSettings",
    fallback: "true",
    meaning: "whether a request goes the direct way when the proxy fails",
  },
  {
    key: "sources.match[].patience",
    kind: seconds,
    option: "sourceSettings",
    fallback: "30",
    meaning: "how long a client's read is tried again before it fails",
    forFiles: true,
  },
  {
    key: "sources.match[].cache",
    kind: oneOf("shared", "none"),
    option: "sourceSettings",
    fallback: '"shared"',
    meaning: "the setting cache of volumes that are made from it, unless the request for one says otherwise",
    forFiles: true,
  },
  {
    key: "log.level",
    kind: oneOf("error", "warn", "info", "debug"),
    option: "logLevel",
    flag: "--log-level",
    fallback: '"info"',
    meaning: "what goes to stderr",
  },
  {
    key: "log.format",
    kind: oneOf("text", "json"),
    option: "logFormat",
    flag: "--log-format",
    fallback: '"text"',
    meaning: "lines for people, or JSON lines",
  },
];
