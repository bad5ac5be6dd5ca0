import { createHash } from "node:crypto";
import { SourceError } from "../base/errors.ts";
import { awsChain, awsProfile } from "./object-store/aws-credentials.ts";
import type { Connections } from "./http/connections.ts";
import { type CredentialLoader, type CredentialSource, loaderOf } from "./credentials.ts";
import { dockerCredentials } from "./registry/docker-credentials.ts";
import { type HttpObject, PlainObject } from "./http/http-object.ts";
import { parseTarget } from "./http/http-target.ts";
import { StoreSite } from "./object-store/object-store.ts";
import { OssDialect } from "./object-store/oss.ts";
import { ossEnvironment } from "./object-store/oss-credentials.ts";
import { parseRegistrySource, registryEndpoint, RegistrySite } from "./registry/registry.ts";
import { S3Dialect } from "./object-store/s3.ts";
import { schemeOf } from "./source-address.ts";
import type { SourceSettings } from "./source-settings.ts";

/** How a source's scheme finds its objects, and by what its connections are shared. */
export interface Kind {
  scheme: string;
  endpoint: string;
  /** What else makes a difference. */
  variant: string;
  /** Of the credentials. */
  reference: string;
  /** Absent: no credentials are given. */
  loader: CredentialLoader | undefined;
  site(connections: Connections, credentials: CredentialSource | undefined): (source: string) => HttpObject;
}

/**
 * @param source as the user wrote it @param url the same in its canonical form
 * @param guarded only configured credentials are used: those that this process just happens to have are not for whoever
 *   may name a source over the network
 * @throws SourceError `source-invalid`
 */
export function kindOf(
  source: string,
  url: string,
  settings: SourceSettings,
  guarded: boolean,
  env: Readonly<Record<string, string | undefined>>,
): Kind {
  const { region, pathStyle, signature } = settings;
  const scheme = schemeOf(url)!;
  const given = (standard: string, loader: () => CredentialLoader | undefined): Pick<Kind, "reference" | "loader"> => {
    const { credentials } = settings;
    if (credentials !== undefined) return { reference: credentials, loader: loaderOf(credentials, env, awsProfile) };
    if (guarded) return { reference: "none", loader: undefined };
    return { reference: standard, loader: loader() };
  };
  if (scheme === "s3") {
    const endpoint = settings.endpoint ?? endpointIn(env, "AWS_ENDPOINT_URL_S3") ?? endpointIn(env, "AWS_ENDPOINT_URL");
    const place = region ?? (env["AWS_REGION"] || env["AWS_DEFAULT_REGION"] || undefined);
    return {
      scheme,
      endpoint: endpoint ?? "Amazon",
      variant: JSON.stringify([place, pathStyle]),
      ...given("the standard AWS chain", awsChain),
      site: (_, credentials) => {
        const site = new StoreSite(new S3Dialect({ endpoint, region: place, pathStyle }), credentials);
        return (each) => site.object(each);
      },
    };
  }
  if (scheme === "oss") {
    const endpoint = settings.endpoint ?? endpointIn(env, "OSS_ENDPOINT", "https://");
    const place = region ?? (env["OSS_REGION"] || env["ALIBABA_CLOUD_REGION_ID"] || undefined);
    const dialect = new OssDialect({ endpoint, region: place, pathStyle, signature });
    return {
      scheme,
      endpoint: endpoint ?? place!,
      variant: JSON.stringify([place, pathStyle, signature]),
      ...given("the environment, ALIBABA_CLOUD_… or OSS_…", () => ossEnvironment(env)),
      site: (_, credentials) => {
        const site = new StoreSite(dialect, credentials);
        return (each) => site.object(each);
      },
    };
  }
  if (scheme === "oci") {
    const { host } = parseRegistrySource(url);
    const endpoint = registryEndpoint(host, settings.endpoint);
    return {
      scheme,
      endpoint,
      variant: host,
      ...given("docker's configuration", () => dockerCredentials(host, env)),
      site: (connections, credentials) => {
        const site = new RegistrySite(endpoint, connections, credentials);
        return (each) => site.object(each);
      },
    };
  }
  const { url: address, authorization } = parseTarget(source);
  return {
    scheme: "http",
    endpoint: address.origin,
    variant: authorization === undefined ? "" : createHash("sha256").update(authorization).digest("hex"),
    ...given("none", () => undefined),
    site: (_, credentials) => (each) => new PlainObject(each, credentials),
  };
}

/** @param scheme what the variable may leave out @throws SourceError `source-invalid` when it holds no address */
function endpointIn(
  env: Readonly<Record<string, string | undefined>>,
  variable: string,
  scheme = "",
): string | undefined {
  const value = env[variable];
  if (value === undefined || value === "") return undefined;
  const endpoint = value.includes("://") ? value : `${scheme}${value}`;
  if (/^https?:$/.test(URL.parse(endpoint)?.protocol ?? "")) return endpoint;
  throw new SourceError("source-invalid", `$${variable} is no address: '${value}'`, {
    transient: false,
    hint: "write it as https://host:port, or unset it",
  });
}
