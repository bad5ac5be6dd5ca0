import { readFile, realpath } from "node:fs/promises";
import { join } from "node:path";
import type { ConnectionOptions } from "node:tls";
import { SourceError } from "../../base/errors.ts";
import { parseKeys, PSK_CIPHERS } from "../../nbd/psk.ts";
import type { NbdAddress, NbdTls } from "./nbd-address.ts";
import type { SourcePolicy } from "../source-guard.ts";

/**
 * What to connect with. The files, which are named as nbdkit's and libnbd's, are read for every connection: they may be
 * exchanged at any time.
 * @param policy which files may be used
 * @throws SourceError `source-tls`, `source-forbidden`
 */
export async function tlsOptions(
  wanted: NbdTls,
  place: NbdAddress["place"],
  policy: SourcePolicy | undefined,
): Promise<ConnectionOptions> {
  const read = async (path: string): Promise<Buffer | undefined> => {
    try {
      policy?.checkFile(path);
      policy?.checkFile(await realpath(path));
      return await readFile(path);
    } catch (cause) {
      if (cause instanceof SourceError) throw cause;
      if ((cause as NodeJS.ErrnoException).code === "ENOENT") return undefined;
      throw broken(`${path} can't be read`, cause);
    }
  };
  if (wanted.pskFile !== undefined) return pskOptions(wanted.pskFile, wanted.username, await read(wanted.pskFile));

  const options: ConnectionOptions = { minVersion: "TLSv1.2", rejectUnauthorized: wanted.verifyPeer };
  if (wanted.hostname !== undefined) options.servername = wanted.hostname;
  // Nobody else can be behind a socket of this machine: its owner is known, its name is not.
  else if (place.kind === "unix") options.checkServerIdentity = () => undefined;
  if (wanted.certificates === undefined) return options;
  const file = (name: string): Promise<Buffer | undefined> => read(join(wanted.certificates!, name));
  const [ca, cert, key, crl] = await Promise.all(
    ["ca-cert.pem", "client-cert.pem", "client-key.pem", "ca-crl.pem"].map(file),
  );
  if (ca === undefined && wanted.verifyPeer) throw broken(`${wanted.certificates} holds no ca-cert.pem`);
  if ((cert === undefined) !== (key === undefined)) {
    throw broken(`${wanted.certificates} holds only one of client-cert.pem and client-key.pem`);
  }
  const given = Object.entries({ ca, cert, key, crl }).filter(([, content]) => content !== undefined);
  return { ...options, ...(Object.fromEntries(given) as ConnectionOptions) };
}

function pskOptions(path: string, username: string | undefined, content: Buffer | undefined): ConnectionOptions {
  if (content === undefined) throw broken(`${path} does not exist`);
  const keys = parseKeys(content.toString("utf8"));
  // The line is not shown: it may hold a key.
  if (typeof keys === "number") throw broken(`${path}: line ${keys} is not identity:hexadecimal-key`);
  const identity = username ?? (keys.size === 1 ? [...keys.keys()][0] : undefined);
  if (identity === undefined) throw broken(`${path} holds ${keys.size} keys: name one, nbds://USER@HOST/EXPORT`);
  const psk = keys.get(identity);
  if (psk === undefined) throw broken(`${path} holds no key of '${identity}'`);
  return {
    minVersion: "TLSv1.2",
    ciphers: PSK_CIPHERS,
    pskCallback: () => ({ psk, identity }),
    // The key is the proof. A server that shows a certificate instead has not got it: no authority is believed.
    ca: [],
    checkServerIdentity: () => undefined,
  };
}

function broken(message: string, cause?: unknown): SourceError {
  return new SourceError("source-tls", message, {
    transient: false,
    hint: "see docs/SOURCES.md for what the directory or the file holds",
    cause,
  });
}
