import { resolve } from "node:path";
import { Option, type Command } from "commander";
import type { ApiAuth } from "../../api/connection-access.ts";
import type { SourceSettings } from "../../backend/source-settings.ts";
import { UllageError } from "../../base/errors.ts";
import type { Ullage } from "../../daemon/ullage.ts";
import type { SocketOptions } from "../addresses.ts";
import { parseListenAddress } from "../../export/listen-address.ts";
import { cacheLimitsOf } from "../cache-limits.ts";
import { addConfigOption } from "../config-option.ts";
import { exportUri } from "../nbd-uri.ts";
import { addLogOptions, type LogOptions } from "../log-options.ts";
import { print, printJson } from "../output.ts";
import { sizeOption } from "../parse.ts";
import { addTlsOptions, loadTlsOptions, type TlsFlags } from "../tls-options.ts";

interface Options extends LogOptions, TlsFlags, SocketOptions {
  data?: string;
  api?: string[];
  apiAuth?: ApiAuth;
  apiHost?: string[];
  /** Only the configuration file says it. */
  allowSources?: string[];
  sourceSettings?: SourceSettings[];
  sourceLimit?: number;
  nbd?: string[];
  blobs?: string;
  unsafeFileSystem?: boolean;
  /** bytes */
  cacheCapacity?: number;
  /** percent; only the configuration file says it */
  cacheReserve?: number;
  json?: boolean;
}

export function addServeCommand(program: Command): void {
  const command = program
    .command("serve")
    .description("the daemon: serves every volume of a data directory over NBD, with an API to manage them")
    .option("--data <dir>", "data directory; default: ./ullage-data, for a system service its state directory")
    .option("--api <addr...>", "HOST:PORT, [::1]:PORT or unix:PATH; default: 127.0.0.1:7070 and unix:<data>/api.sock")
    .addOption(
      new Option("--api-auth <auth>", "whether the API takes a token on TCP; off: on loopback only").choices([
        "token",
        "off",
      ]),
    )
    .option("--api-host <name...>", "further names that the API goes by on TCP, such as that of a proxy in front of it")
    .option("--nbd <addr...>", "HOST:PORT, [::1]:PORT or unix:PATH; default: 127.0.0.1:10809 and unix:<data>/nbd.sock")
    .option(
      "--blobs <addr>",
      "unix:PATH of a blob manager (ullage blobd): its cache is used, not one in the data directory",
    )
    .option(
      "--cache-capacity <size>",
      "what the cache may take on disk; default: the file system, less 5 %",
      sizeOption,
    )
    .option("--unsafe-file-system", "use a data directory on which locks keep nobody out (9p, virtiofs, FUSE, NFS)")
    .option("--json", "print where it listens as an object")
    .addHelpText("after", "\nExample:\n  $ ullage serve --data /srv/ullage --nbd 127.0.0.1:10809");
  addConfigOption(addLogOptions(addTlsOptions(command), "info")).action(serve);
}

async function serve(options: Options): Promise<void> {
  const tls = await loadTlsOptions(options);
  const api = apiOptions(options);
  const { stopSignal, aborted } = await import("../signals.ts");
  const reload = new EventTarget();
  const stop = stopSignal(() => reload.dispatchEvent(new Event("reload")));
  const { Ullage } = await import("../../daemon/ullage.ts");
  const { notifyServiceManager } = await import("../service-manager.ts");
  const { chooseAddresses, socketAccess } = await import("../addresses.ts");
  const { stderrLog } = await import("../stderr-log.ts");
  const log = stderrLog(options);
  const blobs = options.blobs === undefined ? undefined : unixPath(options.blobs);
  const dataDir = resolve(options.data ?? process.env["STATE_DIRECTORY"] ?? "ullage-data");
  const addresses = chooseAddresses(options, {
    api: ["127.0.0.1:7070", `unix:${dataDir}/api.sock`],
    nbd: ["127.0.0.1:10809", `unix:${dataDir}/nbd.sock`],
  });
  const opening = Ullage.open({
    dataDir,
    command: "serve",
    unsafeFileSystem: options.unsafeFileSystem === true,
    ...(options.allowSources === undefined ? {} : { allowSources: options.allowSources }),
    ...(blobs === undefined ? {} : { blobs }),
    cacheLimits: cacheLimitsOf(options),
    sourceSettings: options.sourceSettings ?? [],
    sourceBytesPerSecond: options.sourceLimit ?? null,
    log,
  });
  const library = import("../server.ts"); // a tenth of a second, while the disk and the catalog's thread are at work
  const ullage = await opening;
  const { Server } = await library;
  const server = await Server.start(ullage, addresses, { tls, ...api, blobs: socketAccess(options) }, log);
  // Only a person at a terminal gets a link that opens everything; what goes into a file or a journal stays there.
  const link = process.stdout.isTTY && options.json !== true ? server.dashboardLink() : undefined;
  announce(ullage, options.json === true, link);
  reload.addEventListener("reload", () => {
    ullage.refreshCredentials();
    log("info", "credentials of sources are read again");
  });
  notifyServiceManager("READY=1", log);
  await aborted(stop);
  notifyServiceManager("STOPPING=1", log);
  log("info", "stopping: draining connections, flushing volumes");
  await server.stop();
  log("info", "stopped");
}

/** @throws UllageError `usage` */
function unixPath(text: string): string {
  const address = parseListenAddress(text);
  if (address.kind === "unix") return resolve(address.path);
  throw new UllageError("usage", `--blobs: '${text}' is no unix socket`, { hint: "give unix:/path/to/blobd.sock" });
}

function apiOptions({ apiAuth, apiHost = [] }: Options): { apiAuth?: ApiAuth; apiHosts: string[] } {
  const apiHosts = apiHost.map((name) => name.toLowerCase());
  const wrong = apiHosts.find((name) => !/^[a-z0-9._-]+$/.test(name));
  if (wrong !== undefined) {
    throw new UllageError("usage", `--api-host: '${wrong}' is not a host name`, { hint: "such as ullage.example.org" });
  }
  return apiAuth === undefined ? { apiHosts } : { apiAuth, apiHosts };
}

function announce(ullage: Ullage, json: boolean, dashboard: string | undefined): void {
  const health = ullage.health();
  if (json) {
    printJson(health);
    return;
  }
  const { dataDirectory, listeners, version } = health;
  const uris = listeners.flatMap(({ uri }) => uri ?? []);
  const api = listeners.filter(({ protocol }) => protocol === "api").map(({ address }) => address);
  const program = import.meta.url.endsWith(".ts") ? "bin/ullage" : "ullage";
  print(`Ullage ${version} serves ${dataDirectory}
  NBD  ${uris.join("  ")}
  API  ${api.join("  ")}
${dashboard === undefined ? "" : `  Dashboard  ${dashboard}\n`}
Next, in another terminal:
  ${program} volume create web1 --from SOURCE      a writable disk from an image: a path or an address
  ${program} volume ls
  nbdinfo ${exportUri(uris[0], "web1")}
Ctrl-C stops it; the volumes stay in ${dataDirectory}.`);
}
