/**
 * Waits for all of `work` to end, then throws the first failure: unlike with `Promise.all`, no system call is still under
 * way when the caller goes on to close what it was working on.
 */
export async function allOf<T extends readonly unknown[]>(work: {
  [K in keyof T]: Promise<T[K]>;
}): Promise<{ [K in keyof T]: T[K] }> {
  const results = await Promise.allSettled(work);
  for (const result of results) if (result.status === "rejected") throw result.reason;
  return results.map((result) => (result as PromiseFulfilledResult<unknown>).value) as { [K in keyof T]: T[K] };
}
