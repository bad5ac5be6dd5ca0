import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { succeed } from "./support.ts";

/** A certificate authority with a server's and a client's certificate, in a directory named as nbdkit wants it. */
export async function makePki(dir: string, name: string): Promise<string> {
  const pki = join(dir, name);
  mkdirSync(pki);
  const file = (leaf: string): string => join(pki, leaf);
  const template = (leaf: string, lines: string[]): string => {
    writeFileSync(file(leaf), `${lines.join("\n")}\n`);
    return file(leaf);
  };
  const key = (leaf: string): Promise<string> =>
    succeed("certtool", ["--generate-privkey", "--ecc", "--outfile", file(leaf)]);
  await Promise.all([key("ca-key.pem"), key("server-key.pem"), key("client-key.pem")]);
  const common = ["expiration_days = 30"];
  const ca = template("ca.info", [`cn = ${name} authority`, "ca", "cert_signing_key", "crl_signing_key", ...common]);
  await succeed("certtool", [
    "--generate-self-signed",
    "--load-privkey",
    file("ca-key.pem"),
    "--template",
    ca,
    "--outfile",
    file("ca-cert.pem"),
  ]);
  const server = ["cn = localhost", "dns_name = localhost", "ip_address = 127.0.0.1", "tls_www_server", "signing_key"];
  const client = ["cn = client", "tls_www_client", "signing_key"];
  for (const [who, lines] of [
    ["server", server],
    ["client", client],
  ] as const) {
    await succeed("certtool", [
      "--generate-certificate",
      "--load-ca-certificate",
      file("ca-cert.pem"),
      "--load-ca-privkey",
      file("ca-key.pem"),
      "--load-privkey",
      file(`${who}-key.pem`),
      "--template",
      template(`${who}.info`, [...lines, ...common]),
      "--outfile",
      file(`${who}-cert.pem`),
    ]);
  }
  return pki;
}
