/** Works on all items, on so many at once at most, whatever fails. @returns how each ended, in the order of the items */
export async function fewAtOnce<T>(
  items: readonly T[],
  atOnce: number,
  work: (item: T) => Promise<unknown>,
): Promise<PromiseSettledResult<unknown>[]> {
  const results: PromiseSettledResult<unknown>[] = [];
  let started = 0;
  const worker = async (): Promise<void> => {
    while (started < items.length) {
      const index = started++;
      [results[index]] = await Promise.allSettled([work(items[index])]);
    }
  };
  await Promise.all(Array.from({ length: Math.min(atOnce, items.length) }, worker));
  return results;
}
