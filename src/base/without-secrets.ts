/** `scheme://user:password@host/path?query`; userinfo ends at the last `@` before the path. */
const address = /\b([a-z][a-z0-9+.-]*:\/\/)([^\s/?#"'<>]*@)?([^\s?#"'<>]*)(\?[^\s#"'<>]*)?/gi;

/**
 * Text that may be logged: addresses in it lose user and password, and http, s3 and oss ones their query, which is where
 * pre-signed addresses carry their secrets.
 */
export function withoutSecrets(text: string): string {
  if (!text.includes("://")) return text;
  return text.replace(address, (_, scheme: string, _userinfo: string | undefined, rest: string, query?: string) => {
    const secret = query !== undefined && /^(https?|s3|oss):/i.test(scheme);
    return `${scheme}${rest}${secret ? "?…" : (query ?? "")}`;
  });
}
