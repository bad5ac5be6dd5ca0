import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { Option, type Command } from "commander";
import { UllageError } from "../../base/errors.ts";
import { counted, formatSize } from "../../base/units.ts";
import type { Settings } from "../../catalog/metadata-store.ts";
import type { Ullage } from "../../daemon/ullage.ts";
import type { CreateVolumeRequest, VolumeView } from "../../daemon/views.ts";
import type { SourceSettings } from "../../backend/source-settings.ts";
import { addConfigOption, sourceOptions } from "../config-option.ts";
import { addLogOptions, type LogOptions } from "../log-options.ts";
import { print, printJson } from "../output.ts";
import { absoluteSource, sizeOption } from "../parse.ts";
import { hydrationDetail, ProgressLine } from "../progress.ts";

/** The one volume of a run. */
const diskName = "disk";
const progressMs = 500;

interface Options extends LogOptions {
  size?: number;
  nbd?: string;
  data?: string;
  readOnly?: boolean;
  format?: string;
  hydrate?: Settings["hydrate"];
  download?: boolean;
  unpinned?: boolean;
  allowBacking?: boolean;
  unsafeFileSystem?: boolean;
  /** What follows only the configuration file says. */
  allowSources?: string[];
  sourceSettings?: SourceSettings[];
  sourceLimit?: number;
  cacheCapacity?: number;
  cacheReserve?: number;
  json?: boolean;
}

export function addRunCommand(program: Command): void {
  const command = program
    .command("run <source>")
    .description(
      "serve an image (a path or an address, see `ullage help sources`) as a writable disk, now, until Ctrl-C",
    )
    .option("--size <size>", "a larger disk than the image: 512, 64k, 10M, 1.5G, 2T", sizeOption)
    .option("--nbd <addr>", "HOST:PORT or unix:PATH; default: 127.0.0.1:10809, or a free port when that is taken")
    .option("--data <dir>", "keep the disk and its cache here; the same source goes on from there")
    .option("--read-only", "let nobody write")
    .option("--format <format>", "the image's format; default: by its first bytes")
    .addOption(new Option("--hydrate <when>", "fetch the image in the background").choices(["auto", "off"]))
    .option("--download", "fetch the whole image first, for servers that can't serve ranges")
    .option("--unpinned", "accept a source that offers nothing to notice a change by")
    .option("--allow-backing", "read the backing files that a qcow2 image lies on, too")
    .option("--unsafe-file-system", "use a data directory on which locks keep nobody out (9p, virtiofs, FUSE, NFS)")
    .option("--json", "print where the disk is as an object")
    .addHelpText("after", "\nExample:\n  $ ullage run https://example.org/debian.raw --size 20G");
  addConfigOption(addLogOptions(command, "warn"), ["unsafeFileSystem", ...sourceOptions]).action(run);
}

async function run(source: string, options: Options): Promise<void> {
  const { aborted, stopSignal } = await import("../signals.ts");
  const stop = stopSignal();
  const temporary = options.data === undefined;
  const dataDir = temporary ? await mkdtemp(join(tmpdir(), "ullage-run-")) : resolve(options.data!);
  try {
    const server = await start(absoluteSource(source), dataDir, options, stop);
    if (server === undefined) return;
    await Promise.race([aborted(stop), showProgress(server.ullage, stop, options.json === true)]);
    await aborted(stop);
    await server.stop();
  } finally {
    if (temporary) await rm(dataDir, { recursive: true, force: true });
    if (options.json !== true && stop.aborted) {
      print(
        temporary
          ? `stopped; the disk and everything written to it are gone, with ${dataDir}`
          : `stopped; the disk and its cache stay in ${dataDir}: the same command goes on from there`,
      );
    }
  }
}

interface Running {
  ullage: Ullage;
  stop(): Promise<void>;
}

/** @returns undefined when it was stopped before the disk was there */
async function start(
  source: string,
  dataDir: string,
  options: Options,
  stop: AbortSignal,
): Promise<Running | undefined> {
  const { Ullage } = await import("../../daemon/ullage.ts");
  const { Server } = await import("../server.ts");
  const { chooseAddresses } = await import("../addresses.ts");
  const { stderrLog } = await import("../stderr-log.ts");
  const { cacheLimitsOf } = await import("../cache-limits.ts");
  const log = stderrLog(options);
  const addresses = chooseAddresses(
    { nbd: options.nbd === undefined ? undefined : [options.nbd] },
    { api: [`unix:${dataDir}/api.sock`], nbd: ["127.0.0.1:10809"] },
  );
  const ullage = await Ullage.open({
    dataDir,
    command: "run",
    readOnly: options.readOnly === true,
    unsafeFileSystem: options.unsafeFileSystem === true,
    ...(options.allowSources === undefined ? {} : { allowSources: options.allowSources }),
    sourceSettings: options.sourceSettings ?? [],
    sourceBytesPerSecond: options.sourceLimit ?? null,
    cacheLimits: cacheLimitsOf(options),
    log,
  });
  let disk: VolumeView | undefined;
  try {
    disk = await openDisk(ullage, source, options, stop);
  } finally {
    if (disk === undefined) await ullage.close();
  }
  if (disk === undefined) return undefined;
  const server = await Server.start(ullage, addresses, { freePortIfTaken: options.nbd === undefined }, log);
  announce(ullage, disk, dataDir, options);
  return { ullage, stop: () => server.stop() };
}

/** The disk of the last run when the directory has one, else a new one. @returns undefined when it was stopped */
async function openDisk(
  ullage: Ullage,
  source: string,
  options: Options,
  stop: AbortSignal,
): Promise<VolumeView | undefined> {
  const { aborted } = await import("../signals.ts");
  const volumes = await ullage.listVolumes();
  const found = volumes.find(({ name }) => name === diskName);
  if (found !== undefined && volumes.length === 1) {
    demandSame(ullage, found, source, options);
    return found;
  }
  if (volumes.length > 0) {
    throw new UllageError(
      "not-a-run",
      `${options.data} holds ${counted(volumes.length, "volume")}, not the disk of one run`,
      {
        hint: "use `ullage serve` for it, or another --data",
      },
    );
  }
  const creating = ullage.createVolume(requestFor(source, options));
  creating.catch(() => undefined); // it may end after the stop
  const line = new ProgressLine();
  const timer = setInterval(() => void showDownload(ullage, line, options), progressMs);
  try {
    return await Promise.race([creating, aborted(stop).then(() => undefined)]);
  } finally {
    clearInterval(timer);
    line.end();
  }
}

async function showDownload(ullage: Ullage, line: ProgressLine, options: Options): Promise<void> {
  if (options.json === true) return;
  const [disk] = await ullage.listVolumes();
  if (disk?.state === "creating" && disk.hydration.totalBytes > 0) line.show(hydrationDetail(disk.hydration));
}

function demandSame(ullage: Ullage, disk: VolumeView, source: string, options: Options): void {
  if (!ullage.isMadeFrom(diskName, source)) {
    throw new UllageError("other-source", `${options.data} holds a disk made from ${disk.source}, not from ${source}`, {
      hint: "name the same source, or another --data",
    });
  }
  if (options.size !== undefined && options.size !== disk.size) {
    throw new UllageError("bad-size", `the disk in ${options.data} has ${disk.size} bytes, not ${options.size}`, {
      hint: "leave --size out to go on with it",
    });
  }
}

function requestFor(source: string, options: Options): CreateVolumeRequest {
  const { size, format, download, unpinned, allowBacking, hydrate } = options;
  return {
    name: diskName,
    ...(size === undefined ? {} : { size }),
    from: {
      source,
      ...(format === undefined ? {} : { format }),
      ...(download === undefined ? {} : { download }),
      ...(unpinned === undefined ? {} : { unpinned }),
      ...(allowBacking === undefined ? {} : { allowBacking }),
    },
    ...(hydrate === undefined ? {} : { settings: { hydrate } }),
  };
}

function announce(ullage: Ullage, disk: VolumeView, dataDir: string, options: Options): void {
  const { listeners, warnings } = ullage.health();
  const uris = listeners.flatMap(({ uri }) => uri ?? []);
  const temporary = options.data === undefined;
  if (options.json === true) {
    printJson({ uri: uris[0], volume: disk, dataDirectory: dataDir, temporary, listeners, warnings });
    return;
  }
  print(`${disk.source} is a ${options.readOnly === true ? "read-only" : "writable"} disk of ${formatSize(disk.size)} now:
  ${uris.join("\n  ")}
data in ${dataDir} (${temporary ? "temporary: it is removed at the end" : "it stays"}); Ctrl-C stops`);
}

/** Until everything is fetched, or the stop. */
async function showProgress(ullage: Ullage, stop: AbortSignal, quiet: boolean): Promise<void> {
  if (quiet) return;
  const line = new ProgressLine();
  while (!stop.aborted) {
    const { hydration, writtenBytes } = await ullage.showVolume(diskName);
    const text = `${hydrationDetail(hydration)}  ${formatSize(writtenBytes)} written`;
    if (hydration.state === "detached") return line.end(text);
    line.show(text);
    await new Promise((next) => setTimeout(next, progressMs));
  }
  line.end();
}
