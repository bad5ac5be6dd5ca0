import { posix } from "node:path";
import { SourceError } from "../base/errors.ts";
import { canonicalSource, schemeOf } from "./source-address.ts";

/**
 * The source that an image's backing file is, by the name that stands in the image: relative to the image's own place.
 * What came over a network names nothing but objects of its own server (and bucket), never files of this host.
 * @param url of the image, canonical
 * @throws SourceError `image-unsupported`, `source-invalid`
 */
export function backingSource(url: string, name: string): string {
  const scheme = schemeOf(url);
  if (scheme === undefined) {
    if (schemeOf(name) !== undefined) return canonicalSource(name);
    if (isProtocol(name)) throw unreadable(name, "is no path and no URL");
    return posix.resolve(posix.dirname(url), name);
  }
  const source = resolveUrl(url, scheme, name);
  if (source === undefined) throw unreadable(name, `lies elsewhere than ${url}`);
  return canonicalSource(source);
}

function resolveUrl(url: string, scheme: string, name: string): string | undefined {
  const root = /^[a-z0-9+.-]+:\/\/[^/?#]+\//i.exec(url)?.[0];
  if (root === undefined || !["http", "https", "s3", "oss"].includes(scheme)) return undefined;
  if (schemeOf(name) !== undefined) return canonicalSource(name).startsWith(root) ? name : undefined;
  if (isProtocol(name) || name.startsWith("/")) return undefined;
  if (scheme === "http" || scheme === "https") {
    const found = new URL(name.split("/").map(encodeURIComponent).join("/"), url).href;
    return found.startsWith(root) ? found : undefined;
  }
  const key = url.slice(root.length).replace(/\?versionId=[^?]*$/, "");
  return `${root}${posix.resolve("/", posix.dirname(`/${key}`), name).slice(1)}`;
}

/** `json:{…}`, `nbd:host:port`, and what else QEMU takes a name with a colon for. */
const isProtocol = (name: string): boolean => /^[^/]*:/.test(name);

function unreadable(name: string, why: string): SourceError {
  return new SourceError("image-unsupported", `the image's backing file '${name}' ${why}`, {
    transient: false,
    hint: "name it relative to the image (qemu-img rebase -u -b NAME -F FORMAT IMAGE), or join them: qemu-img convert",
  });
}
