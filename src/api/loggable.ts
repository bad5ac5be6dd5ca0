/**
 * What a client sent, fit for a line of the log: it can't forge lines nor colour a terminal, and a token that was given
 * where a name belongs does not stay there.
 */
export function loggable(text: string): string {
  return text.replaceAll(/[^\x20-\x7e]/g, "?").replaceAll(/ullage_[0-9a-f]{32}_[A-Za-z0-9_-]*/g, "ullage_…");
}

/** A request's path without its query, which may hold anything. */
export function loggablePath(url: string): string {
  return loggable(url.split("?")[0]);
}
