/** More changes than this for so many characters are another word, not a slip of the finger. */
const charactersPerChange = 3;
const maxSuggestions = 3;

/**
 * The words that somebody who typed `word` most likely meant, nearest first: those a few changes away, and those that it
 * begins, when it is at least two characters. Upper and lower case count as equal.
 */
export function similarWords(word: string, known: Iterable<string>): string[] {
  const typed = word.toLowerCase();
  const allowed = Math.max(1, Math.floor(typed.length / charactersPerChange));
  const found: { candidate: string; distance: number }[] = [];
  for (const candidate of known) {
    const other = candidate.toLowerCase();
    if (Math.abs(other.length - typed.length) <= allowed) {
      const distance = editDistance(typed, other);
      if (distance <= allowed && distance < typed.length) {
        found.push({ candidate, distance });
        continue;
      }
    }
    if (typed.length >= 2 && other.startsWith(typed)) found.push({ candidate, distance: allowed + 1 });
  }
  found.sort((a, b) => a.distance - b.distance || (a.candidate < b.candidate ? -1 : 1));
  return found.slice(0, maxSuggestions).map(({ candidate }) => candidate);
}

/** `did you mean 'web1'?`, `did you mean 'web1' or 'web2'?`; undefined when nothing is near. */
export function didYouMean(word: string, known: Iterable<string>): string | undefined {
  const words = similarWords(word, known).map((each) => `'${each}'`);
  if (words.length === 0) return undefined;
  const last = words.pop()!;
  return `did you mean ${words.length === 0 ? last : `${words.join(", ")} or ${last}`}?`;
}

/** Insertions, deletions, replacements and swaps of neighbours that turn one word into the other. */
function editDistance(from: string, to: string): number {
  let twoAgo: number[] = [];
  let before = Array.from({ length: to.length + 1 }, (_, index) => index);
  for (let i = 1; i <= from.length; i++) {
    const row = [i];
    for (let j = 1; j <= to.length; j++) {
      const replaced = before[j - 1] + (from[i - 1] === to[j - 1] ? 0 : 1);
      row[j] = Math.min(replaced, before[j] + 1, row[j - 1] + 1);
      const swapped = i > 1 && j > 1 && from[i - 1] === to[j - 2] && from[i - 2] === to[j - 1];
      if (swapped) row[j] = Math.min(row[j], twoAgo[j - 2] + 1);
    }
    twoAgo = before;
    before = row;
  }
  return before[to.length];
}
