/** As nbdkit's: TLS 1.3 suites by name, and the 1.2 suites that work with a pre-shared key. */
export const PSK_CIPHERS = [
  "TLS_AES_256_GCM_SHA384",
  "TLS_CHACHA20_POLY1305_SHA256",
  "TLS_AES_128_GCM_SHA256",
  "ECDHE-PSK-CHACHA20-POLY1305",
  "ECDHE-PSK-AES256-CBC-SHA384",
  "ECDHE-PSK-AES128-CBC-SHA256",
  "DHE-PSK-AES256-GCM-SHA384",
  "DHE-PSK-CHACHA20-POLY1305",
].join(":");

/**
 * The keys in a file of lines `identity:hexadecimal key`, as psktool writes it.
 * @returns the number of the first line that is none, counted from 1, when there is one: what is on it may be a key
 */
export function parseKeys(text: string): Map<string, Buffer> | number {
  const keys = new Map<string, Buffer>();
  for (const [index, each] of text.split("\n").entries()) {
    const line = each.trim();
    if (line === "") continue;
    const colon = line.lastIndexOf(":");
    const hex = line.slice(colon + 1);
    if (colon < 1 || hex === "" || hex.length % 2 !== 0 || !/^[0-9a-fA-F]+$/.test(hex)) return index + 1;
    keys.set(line.slice(0, colon), Buffer.from(hex, "hex"));
  }
  return keys;
}
