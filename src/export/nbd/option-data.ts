import { MAX_STRING_BYTES } from "./limits.ts";

/** NBD_OPT_INFO and NBD_OPT_GO: name length, name, number of requests, requests. @returns undefined when malformed */
export function parseInfoRequest(data: Buffer): { name: string; infos: number[] } | undefined {
  if (data.length < 6) return undefined;
  const nameBytes = data.readUInt32BE(0);
  if (nameBytes > data.length - 6 || nameBytes > MAX_STRING_BYTES) return undefined;
  const count = data.readUInt16BE(4 + nameBytes);
  if (data.length !== 6 + nameBytes + 2 * count) return undefined;
  const infos: number[] = [];
  for (let i = 0; i < count; i++) infos.push(data.readUInt16BE(6 + nameBytes + 2 * i));
  return { name: data.toString("utf8", 4, 4 + nameBytes), infos };
}

/** NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT: name, number of queries, queries. */
export function parseMetaRequest(data: Buffer): { name: string; queries: string[] } | undefined {
  let at = 0;
  const string = (): string | undefined => {
    if (data.length - at < 4) return undefined;
    const length = data.readUInt32BE(at);
    if (length > data.length - at - 4 || length > MAX_STRING_BYTES) return undefined;
    at += 4 + length;
    return data.toString("utf8", at - length, at);
  };
  const name = string();
  if (name === undefined || data.length - at < 4) return undefined;
  const count = data.readUInt32BE(at);
  at += 4;
  const queries: string[] = [];
  for (let i = 0; i < count; i++) {
    const query = string();
    if (query === undefined) return undefined;
    queries.push(query);
  }
  return at === data.length ? { name, queries } : undefined;
}
