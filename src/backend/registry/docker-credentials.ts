import { stat } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
import { type CredentialLoader, type Credentials, readSmallFile } from "../credentials.ts";
import { runHelper } from "../helper-process.ts";

/** What a helper said is taken for true this long: some of them (ECR's) hand out tokens that expire. */
const keepMs = 5 * 60_000;

interface DockerConfig {
  auths?: Record<
    string,
    { auth?: string; username?: string; password?: string; identitytoken?: string; registrytoken?: string }
  >;
  credHelpers?: Record<string, string>;
  credsStore?: string;
}

/**
 * The credentials that `docker login`, `skopeo login` and the like have kept for a registry, in $DOCKER_CONFIG/config.json
 * or ~/.docker/config.json: of the helper for this registry, of the store for all, or of the file itself.
 * @param host `registry.example.org`, `127.0.0.1:5000`
 */
export function dockerCredentials(host: string, env: Readonly<Record<string, string | undefined>>): CredentialLoader {
  const path = join(env["DOCKER_CONFIG"] || join(env["HOME"] || homedir(), ".docker"), "config.json");
  return {
    keepMs,
    stamp: async () => {
      const { mtimeNs, size, ino } = await stat(path, { bigint: true });
      return [mtimeNs, size, ino].join(" ");
    },
    load: async () => {
      const config = await readConfig(path);
      const names = namesOf(host);
      const helper = names.map((name) => config.credHelpers?.[name]).find((name) => name !== undefined);
      if (helper !== undefined) return ask(helper, names[0]);
      const stored = config.credsStore === undefined ? undefined : await ask(config.credsStore, names[0]);
      return stored ?? inFile(config, names);
    },
  };
}

/** Docker Hub goes by several names, and its login is kept under the oldest one. */
function namesOf(host: string): string[] {
  const hub = host === "docker.io" || host === "registry-1.docker.io" || host === "index.docker.io";
  return hub
    ? ["https://index.docker.io/v1/", "docker.io", "index.docker.io"]
    : [host, `https://${host}`, `http://${host}`];
}

async function readConfig(path: string): Promise<DockerConfig> {
  let text: string;
  try {
    text = await readSmallFile(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return {};
    throw error;
  }
  try {
    return (JSON.parse(text) ?? {}) as DockerConfig;
  } catch {
    throw new Error(`${path} is not JSON`); // the parser's message would quote it
  }
}

/** @returns undefined when the helper has nothing for this registry */
async function ask(helper: string, server: string): Promise<Credentials | undefined> {
  if (!/^[\w.-]+$/.test(helper)) throw new Error("the docker configuration names a helper that is none");
  let printed: string;
  try {
    printed = await runHelper(`docker-credential-${helper}`, ["get"], server);
  } catch (error) {
    // It ends with 1 for what it does not have, and for all that goes wrong: it may have it the next time.
    if ((error as Error).message.endsWith(" ended with 1")) return undefined;
    throw error;
  }
  let answer: { Username?: unknown; Secret?: unknown };
  try {
    answer = JSON.parse(printed) as typeof answer;
  } catch {
    throw new Error(`docker-credential-${helper} printed no JSON`);
  }
  const { Username: username, Secret: secret } = answer;
  if (typeof username !== "string" || typeof secret !== "string" || secret === "") return undefined;
  return username === "<token>" ? { refreshToken: secret } : { username, password: secret };
}

function inFile({ auths = {} }: DockerConfig, names: readonly string[]): Credentials | undefined {
  const entry = names
    .flatMap((name) => [auths[name], auths[`${name}/`], auths[`${name}/v1/`], auths[`${name}/v2/`]])
    .find((found) => found !== undefined);
  if (entry === undefined) return undefined;
  if (entry.registrytoken) return { token: entry.registrytoken };
  if (entry.identitytoken) return { refreshToken: entry.identitytoken };
  const pair = entry.auth ? Buffer.from(entry.auth, "base64").toString("utf8").replace(/\0+$/, "") : undefined;
  const [, username, password] = /^([^:]*):(.*)$/s.exec(pair ?? "") ?? [];
  if (username) return { username, password };
  return entry.username ? { username: entry.username, password: entry.password ?? "" } : undefined;
}
