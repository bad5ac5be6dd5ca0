import { readFile } from "node:fs/promises";
import type { Socket } from "node:net";
import path from "node:path";
import tls from "node:tls";
import { UllageError } from "../../base/errors.ts";
import { parseKeys, PSK_CIPHERS } from "../../nbd/psk.ts";

/** `on`: clients may use TLS; `require`: nothing is answered without it ("FORCEDTLS mode"). */
export type TlsMode = "off" | "on" | "require";

/** What `loadTls` read, for `NbdOptions`. */
export interface TlsSettings {
  mode: TlsMode;
  options: tls.TlsOptions;
}

/**
 * Reads certificates or keys from files named as nbdkit's.
 * @param source.certsDir holds ca-cert.pem, server-cert.pem, server-key.pem, and ca-crl.pem when certificates are revoked
 * @param source.pskFile lines of `identity:hexadecimal key`
 * @param source.verifyPeer clients must show a certificate that ca-cert.pem signed
 * @throws UllageError `tls-config` naming what is missing or contradictory
 */
export async function loadTls(source: {
  mode: TlsMode;
  certsDir?: string | undefined;
  pskFile?: string | undefined;
  verifyPeer?: boolean | undefined;
}): Promise<TlsSettings> {
  const { mode, certsDir, pskFile, verifyPeer } = source;
  if (mode === "off") return { mode, options: {} };
  if (certsDir !== undefined && pskFile !== undefined) {
    throw configError("both certificates and pre-shared keys are given", "use either --tls-certs or --tls-psk");
  }
  if (pskFile !== undefined) {
    if (verifyPeer) {
      throw configError(
        "--tls-verify-peer needs certificates",
        "with --tls-psk every client is verified by its key already",
      );
    }
    return { mode, options: pskOptions(await readKeys(pskFile)) };
  }
  if (certsDir === undefined) {
    throw configError(`TLS is ${mode} but there is no key`, "give --tls-certs DIR or --tls-psk FILE");
  }
  const ca = await read(path.join(certsDir, "ca-cert.pem"));
  const cert = await read(path.join(certsDir, "server-cert.pem"));
  const key = await read(path.join(certsDir, "server-key.pem"));
  const options: tls.TlsOptions = { ca, cert, key, minVersion: "TLSv1.2" };
  if (verifyPeer) {
    options.requestCert = true;
    options.rejectUnauthorized = true;
    const crl = await readOptional(path.join(certsDir, "ca-crl.pem"));
    if (crl !== undefined) options.crl = crl;
  }
  try {
    tls.createSecureContext(options);
  } catch (cause) {
    throw new UllageError("tls-config", `the certificates in ${certsDir} can't be used`, { cause });
  }
  return { mode, options };
}

function pskOptions(keys: ReadonlyMap<string, Buffer>): tls.TlsOptions {
  return {
    minVersion: "TLSv1.2",
    ciphers: PSK_CIPHERS,
    pskCallback: (_socket, identity) => keys.get(identity) ?? null,
  };
}

async function readKeys(file: string): Promise<Map<string, Buffer>> {
  const keys = parseKeys((await read(file)).toString("utf8"));
  if (typeof keys === "number") {
    // The line is not shown: it may hold a key.
    throw configError(`${file}: line ${keys} is not identity:hexadecimal-key`, "make keys with psktool");
  }
  if (keys.size === 0) throw configError(`${file} holds no keys`, "make keys with psktool");
  return keys;
}

async function read(file: string): Promise<Buffer> {
  try {
    return await readFile(file);
  } catch (cause) {
    throw new UllageError("tls-config", `${file} can't be read`, { cause });
  }
}

async function readOptional(file: string): Promise<Buffer | undefined> {
  try {
    return await readFile(file);
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw new UllageError("tls-config", `${file} can't be read`, { cause });
  }
}

function configError(message: string, hint: string): UllageError {
  return new UllageError("tls-config", message, { hint });
}

/**
 * The server side of a TLS handshake on a connected socket. Resolves when the client is verified as far as the options
 * demand; rejects, with the socket destroyed, when it is not or takes too long.
 *
 * The check of client certificates is `tls.Server`'s own: a bare TLSSocket would let a foreign certificate pass. The
 * server is made for this one socket, since nothing else tells which plain socket a secure one came from.
 */
export function secure(socket: Socket, settings: TlsSettings, timeoutMs: number): Promise<tls.TLSSocket> {
  return new Promise((resolve, reject) => {
    const server = tls.createServer({ ...settings.options, handshakeTimeout: timeoutMs });
    server.once("secureConnection", resolve);
    server.once("tlsClientError", (error: Error, failed: tls.TLSSocket) => {
      failed.destroy();
      reject(new UllageError("tls-handshake", "TLS handshake failed", { cause: error }));
    });
    socket.once("close", () => reject(new UllageError("tls-handshake", "the client left during the TLS handshake")));
    server.emit("connection", socket);
  });
}
