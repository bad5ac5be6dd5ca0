/** `scheme://user:password@host/path?query`; userinfo ends at the last `@` before the path. */
const address = /\b([a-z][a-z0-9+.-]*:\/\/)([^\s/?#"<>]*@)?([^\s?#"<>]*)(\?[^\s#"<>]*)?/gi;

/** What stands behind an address in a sentence, and may be a part of it. */
const behind = /['),.:;]*$/;

/**
 * Text that may be shown or logged: addresses in it lose user and password, and http, s3 and oss ones their query, which is
 * where pre-signed addresses carry their secrets; the version of an object is none.
 */
export function withoutSecrets(text: string): string {
  if (!text.includes("://")) return text;
  return text.replace(address, (_, scheme: string, _userinfo: string | undefined, rest: string, query?: string) => {
    if (query === undefined) return `${scheme}${rest}`;
    const secret = /^https?:/i.test(scheme) || (/^(s3|oss):/i.test(scheme) && !/^\?versionId=[^&]*$/.test(query));
    return `${scheme}${rest}${secret ? `?…${behind.exec(query)![0]}` : query}`;
  });
}

/** A source, a path or an address, as it may be shown: `https://example.org/disk.raw?…`. */
export function shownSource(source: string): string {
  return source.startsWith("/") ? source : withoutSecrets(source).replace(/\?….*$/s, "?…");
}
