/** What a server says, fit to be shown: short, on one line, without control characters. */
export function printable(message: Buffer): string {
  return message
    .toString("utf8", 0, 500)
    .replaceAll(/\p{C}+/gu, " ")
    .trim();
}
