import {
  addresses,
  boolean,
  byteSize,
  percentage,
  fileMode,
  group,
  hostNames,
  oneOf,
  path,
  sourceEntries,
  type Kind,
} from "./kinds.ts";

/** A key of the configuration file. */
export interface ConfigKey {
  /** Where it stands: `tls.mode` is `mode` in the table `[tls]`. */
  readonly key: string;
  readonly kind: Kind;
  /** The attribute of the options of `serve` that it sets. */
  readonly option: string;
  /** The flag that overrides it; undefined when only the file can say it. */
  readonly flag?: string;
  /** What holds when nothing is said, for people. */
  readonly fallback: string;
  readonly meaning: string;
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
    meaning: "percentage of the file system that the cache leaves free",
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
