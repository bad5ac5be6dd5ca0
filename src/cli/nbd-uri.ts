/** The NBD URI of a volume, given that of the default export on the same listener. */
export function exportUri(defaultUri: string, name: string): string {
  const [path = "", query] = defaultUri.split("?");
  return `${path}${name}${query === undefined ? "" : `?${query}`}`;
}
