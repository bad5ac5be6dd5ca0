import { createHash } from "node:crypto";
import { SignatureV4 } from "@smithy/signature-v4";
import { percentEncodePath } from "../../src/backend/object-store/object-store.ts";
import { Sha256 } from "../../src/backend/object-store/s3.ts";

interface Store {
  origin: string;
  accessKeyId: string;
  secretAccessKey: string;
}

/** Writes a bucket (no key), an object, or a bucket's sub-resource: what the tests need beside reading. */
export async function s3Put(
  store: Store,
  bucket: string,
  key = "",
  body: Buffer | string = "",
  query: Record<string, string> = {},
  more: Record<string, string> = {},
): Promise<globalThis.Headers> {
  const url = new URL(store.origin);
  const path = percentEncodePath(`/${bucket}${key === "" ? "" : `/${key}`}`);
  const signer = new SignatureV4({
    service: "s3",
    region: "us-east-1",
    credentials: store,
    sha256: Sha256,
    uriEscapePath: false,
  });
  const { headers } = await signer.sign({
    method: "PUT",
    protocol: url.protocol,
    hostname: url.hostname,
    path,
    query,
    headers: { host: url.host, "x-amz-content-sha256": createHash("sha256").update(body).digest("hex"), ...more },
  });
  const search = new URLSearchParams(query).toString();
  const answer = await fetch(`${store.origin}${path}${search === "" ? "" : `?${search}`}`, {
    method: "PUT",
    headers,
    body: Buffer.from(body),
  });
  if (!answer.ok) throw new Error(`PUT ${path} answered ${answer.status}: ${await answer.text()}`);
  return answer.headers;
}
