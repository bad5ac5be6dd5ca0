import { resolve } from "node:path";
import type { Command } from "commander";
import type { SourceSettings } from "../../backend/source-settings.ts";
import type { SocketOptions } from "../addresses.ts";
import { addConfigOption, sourceOptions } from "../config-option.ts";
import { addLogOptions, type LogOptions } from "../log-options.ts";
import { print, printJson } from "../output.ts";
import { parseUserIds } from "../user-ids.ts";

interface Options extends LogOptions, SocketOptions {
  /** What follows only the configuration file says. */
  allowSources?: string[];
  sourceSettings?: SourceSettings[];
  sourceLimit?: number;
  cacheCapacity?: number;
  cacheReserve?: number;
  /** Flags. */
  data?: string;
  socket?: string;
  allowUser?: string[];
  json?: boolean;
}

export function addBlobdCommand(program: Command): void {
  const command = program
    .command("blobd")
    .description("the blob manager alone: the shared cache of a data directory for other processes of this host")
    .option("--data <dir>", "data directory, of which only blobs/ is used; default: ./ullage-data")
    .option("--socket <path>", "unix socket; default: <data>/blobd.sock")
    .option("--allow-user <user...>", "who may connect besides root and the user that runs it: names or numbers")
    .option("--json", "print where it listens as an object")
    .addHelpText("after", "\nExample:\n  $ ullage blobd --data /var/cache/ullage --allow-user qemu");
  const taken = ["data", "socketMode", "socketGroup", ...sourceOptions];
  addConfigOption(addLogOptions(command, "info"), taken).action(blobd);
}

async function blobd(options: Options): Promise<void> {
  const allowedUsers = parseUserIds(options.allowUser ?? []);
  const { stopSignal, aborted } = await import("../signals.ts");
  const reload = new EventTarget();
  const stop = stopSignal(() => reload.dispatchEvent(new Event("reload")));
  const { BlobDaemon } = await import("../../daemon/cache/blob-daemon.ts");
  const { stderrLog } = await import("../stderr-log.ts");
  const { socketAccess } = await import("../addresses.ts");
  const { cacheLimitsOf } = await import("../cache-limits.ts");
  const { notifyServiceManager } = await import("../service-manager.ts");
  const log = stderrLog(options);
  const daemon = await BlobDaemon.open({
    dataDir: options.data ?? "ullage-data",
    ...(options.socket === undefined ? {} : { socket: resolve(options.socket) }),
    allowedUsers,
    access: socketAccess(options),
    ...(options.allowSources === undefined ? {} : { allowSources: options.allowSources }),
    sourceSettings: options.sourceSettings ?? [],
    sourceBytesPerSecond: options.sourceLimit ?? null,
    cacheLimits: cacheLimitsOf(options),
    log,
  });
  reload.addEventListener("reload", () => {
    daemon.refreshCredentials();
    log("info", "credentials of sources are read again");
  });
  if (options.json === true) printJson({ dataDirectory: daemon.dataDir, socket: daemon.socket, pid: process.pid });
  else print(`the blob manager of ${daemon.dataDir} listens on ${daemon.socket}\nCtrl-C stops it.`);
  notifyServiceManager("READY=1", log);
  await aborted(stop);
  notifyServiceManager("STOPPING=1", log);
  await daemon.close();
}
