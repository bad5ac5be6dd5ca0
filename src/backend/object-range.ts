import type { Backend, Identity, Sink } from "./backend.ts";

/** @throws RangeError, a defect of the caller */
export function demandInside({ size }: Identity, offset: number, length: number): void {
  if (offset >= 0 && length >= 0 && offset + length <= size) return;
  throw new RangeError(`${offset}+${length} is outside of the object's ${size} bytes`);
}

/** The object's first bytes, at most `headBytes`. @throws as `Backend.read` */
export async function readHead(
  backend: Pick<Backend, "read">,
  identity: Identity,
  headBytes: number,
  signal: AbortSignal | undefined,
): Promise<Buffer> {
  const head = Buffer.alloc(Math.min(headBytes, identity.size));
  let at = 0;
  const sink: Sink = (chunk) => {
    head.set(chunk, at);
    at += chunk.length;
  };
  await backend.read(identity, 0, head.length, sink, signal === undefined ? {} : { signal });
  return head;
}
