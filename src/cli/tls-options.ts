import { Option, type Command } from "commander";
import type { TlsMode, TlsSettings } from "../export/nbd/tls.ts";

export interface TlsFlags {
  tls?: TlsMode;
  tlsCerts?: string;
  tlsPsk?: string;
  tlsVerifyPeer?: boolean;
}

/** Adds --tls and what belongs to it; names of options and files are nbdkit's. */
export function addTlsOptions(command: Command): Command {
  return command
    .addOption(
      new Option("--tls <mode>", "TLS on NBD; default: on when certificates or keys are given").choices([
        "off",
        "on",
        "require",
      ]),
    )
    .option("--tls-certs <dir>", "ca-cert.pem, server-cert.pem, server-key.pem")
    .option("--tls-psk <file>", "pre-shared keys: lines of user:hex")
    .option("--tls-verify-peer", "let in only clients whose certificate ca-cert.pem has signed");
}

/** @throws UllageError `tls-config` */
export async function loadTlsOptions(flags: TlsFlags): Promise<TlsSettings> {
  const { loadTls } = await import("../export/nbd/tls.ts");
  const given = flags.tlsCerts !== undefined || flags.tlsPsk !== undefined;
  return loadTls({
    mode: flags.tls ?? (given ? "on" : "off"),
    certsDir: flags.tlsCerts,
    pskFile: flags.tlsPsk,
    verifyPeer: flags.tlsVerifyPeer,
  });
}
