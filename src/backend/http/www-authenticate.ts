/** One challenge of a WWW-Authenticate header (RFC 9110 section 11.6.1). */
export interface Challenge {
  /** In lower case: `bearer`, `basic`. */
  scheme: string;
  /** Names in lower case. */
  params: Record<string, string>;
}

/** More is no challenge. */
const maxLength = 8192;
const token = /[!#$%&'*+.^_`|~0-9A-Za-z-]+/y;
const quoted = /"((?:[^"\\]|\\.)*)"/sy;
/** Also what strict grammar would want in quotes: `=`, `:` and `/` inside of values occur. */
const bare = /[^\s,"]+/y;
const separator = /[\s,]*/y;

/**
 * All challenges of a header, which may be given in several lines. What can't be parsed ends the list: who can't be
 * understood is not answered.
 */
export function parseChallenges(value: string | string[] | undefined): Challenge[] {
  const text = (Array.isArray(value) ? value.join(", ") : (value ?? "")).slice(0, maxLength);
  const challenges: Challenge[] = [];
  let at = 0;
  const eat = (pattern: RegExp): RegExpExecArray | undefined => {
    pattern.lastIndex = at;
    const match = pattern.exec(text) ?? undefined;
    if (match !== undefined) at += match[0].length;
    return match;
  };
  const skip = (): void => void eat(separator);
  for (skip(); at < text.length; skip()) {
    const name = eat(token)?.[0];
    if (name === undefined) break;
    const afterName = at;
    eat(/\s*/y);
    const current = challenges.at(-1);
    if (text[at] === "=" && current !== undefined) {
      at++;
      eat(/\s*/y);
      const string = eat(quoted)?.[1]?.replace(/\\(.)/gs, "$1");
      const found = string ?? eat(bare)?.[0];
      if (found === undefined) break;
      current.params[name.toLowerCase()] ??= found;
    } else {
      at = afterName;
      challenges.push({ scheme: name.toLowerCase(), params: {} });
      eat(/[ \t]+/y);
      // `Negotiate dG9rZW4=`: a scheme with one value that has no name.
      const value68 = eat(/[A-Za-z0-9._~+/-]+=*(?=\s*(?:,|$))/y);
      if (value68 === undefined) continue;
    }
  }
  return challenges;
}
