import { UllageError } from "../base/errors.ts";
import { didYouMean } from "../base/similar.ts";

/** Names beyond so many are not looked through. */
const maxNames = 10_000;

/** Asks the daemon for a path. */
export type Ask = (path: string) => Promise<unknown>;

/** The names of the daemon's volumes. */
export async function volumeNames(ask: Ask): Promise<string[]> {
  const names: string[] = [];
  let next: string | null = null;
  do {
    const cursor = next === null ? "" : `&cursor=${encodeURIComponent(next)}`;
    const page = (await ask(`/v1/volumes?limit=1000${cursor}`)) as { volumes: { name: string }[]; next: string | null };
    names.push(...page.volumes.map(({ name }) => name));
    next = page.next;
  } while (next !== null && names.length < maxNames);
  return names;
}

/** An error that says that there is no volume of some name gets the names that were probably meant for a hint. */
export async function withSuggestion(error: unknown, ask: Ask): Promise<unknown> {
  if (!(error instanceof UllageError)) return error;
  const name = /^there is no volume '([^']+)'/.exec(error.message)?.[1];
  if (name === undefined) return error;
  const known = await volumeNames(ask).catch(() => []);
  const suggestion = didYouMean(name, known);
  if (suggestion === undefined) return error;
  const hint = error.hint === undefined ? suggestion : `${suggestion} ${error.hint}`;
  return new UllageError(error.code, error.message, { hint });
}
