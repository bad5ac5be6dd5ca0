/** What is configured for all sources whose address begins with a prefix. */
export interface SourceSettings {
  /** `s3://backups/`, `https://images.example.org/`, `oci://registry.example.org/`; of files `/srv/images/`, for `alternatives`, `patience` and `cache` */
  prefix: string;
  endpoint?: string;
  region?: string;
  pathStyle?: boolean;
  signature?: "v1" | "v4";
  /** See credentials.ts. */
  credentials?: string;
  /** Path of a PEM file: authorities for certificates, beside the system's. */
  ca?: string;
  /** Prefixes that stand for this one. */
  mirrors?: readonly string[];
  /** Of files: paths below which a file may be instead. */
  alternatives?: readonly string[];
  /** The address of an HTTP proxy, or `none`. */
  proxy?: string;
  proxyFallback?: boolean;
  /** Seconds for which a client's read is tried again. */
  patience?: number;
  /** Of volumes that are made from it, when the request says nothing. */
  cache?: "shared" | "none";
}

/** Those of the longest prefix. @param url a source in its canonical form */
export function settingsFor(url: string, all: readonly SourceSettings[]): SourceSettings | undefined {
  return all
    .filter(({ prefix }) => hasPrefix(url, prefix))
    .reduce<SourceSettings | undefined>(
      (best, one) => (best === undefined || one.prefix.length > best.prefix.length ? one : best),
      undefined,
    );
}

/** The same object below a mirror's prefix. */
export function mirrored(url: string, { prefix }: SourceSettings, mirror: string): string {
  const rest = url.slice(prefix.length);
  if (mirror.endsWith("/") && rest.startsWith("/")) return mirror + rest.slice(1);
  return prefix.endsWith("/") && !mirror.endsWith("/") ? `${mirror}/${rest}` : mirror + rest;
}

/** `s3://backups` is no prefix of `s3://backups-of-others/…`: a part of an address ends where the prefix does. */
function hasPrefix(url: string, prefix: string): boolean {
  if (!url.startsWith(prefix)) return false;
  const ends = prefix.startsWith("/") ? /\// : /[/:@?#]/;
  return prefix.endsWith("/") || url.length === prefix.length || ends.test(url[prefix.length]);
}
