import { InvalidArgumentError, type Command } from "commander";
import { UllageError } from "../../base/errors.ts";
import { formatSize } from "../../base/units.ts";
import type { BlobView, CacheView } from "../../daemon/views.ts";
import type { ApiClient } from "../api-client.ts";
import { allPages, clientCommand, findDaemon, type ClientOptions } from "../client-command.ts";
import { formatFields, formatTable, print, printJson } from "../output.ts";
import { sizeOption } from "../parse.ts";

/** `ullage cache …`: what is here of the images, and what is to stay or go. */
export function addCacheCommand(program: Command): void {
  const cache = program.command("cache").description("the cache that all volumes share (asks the daemon)");
  addChanges(cache);
  clientCommand(
    cache,
    "ls",
    "list what is here of each version of each image, and what it was fetched for",
    "ullage cache ls",
  ).action(async (options: ClientOptions) => {
    const blobs = await allPages<BlobView>(await findDaemon(options), "/v1/blobs", "blobs");
    if (options.json === true) {
      printJson({ blobs, next: null });
      return;
    }
    if (blobs.length === 0) {
      print("there is nothing in the cache: no volume was made from an image");
      return;
    }
    print(
      formatTable(blobs, [
        { heading: "BLOB", value: ({ id }) => id.slice(0, 12) },
        { heading: "SIZE", value: ({ size }) => formatSize(size), right: true },
        { heading: "READY", value: ({ readyBytes }) => formatSize(readyBytes), right: true },
        { heading: "ON DISK", value: ({ diskBytes }) => formatSize(diskBytes), right: true },
        { heading: "WAITED FOR", value: ({ foregroundBytes }) => formatSize(foregroundBytes), right: true },
        { heading: "AHEAD", value: (blob) => formatSize(blob.readaheadBytes + blob.backgroundBytes), right: true },
        { heading: "VOLUMES", value: ({ volumes }) => String(volumes.length), right: true },
        { heading: "SOURCE IS", value: describeSource },
        { heading: "SOURCE", value: ({ source }) => source, elastic: true },
      ]),
    );
    const sum = (of: (blob: BlobView) => number): string => formatSize(blobs.reduce((all, blob) => all + of(blob), 0));
    print(`${sum(({ readyBytes }) => readyBytes)} ready, ${sum(({ diskBytes }) => diskBytes)} on disk`);
  });
}

function addChanges(cache: Command): void {
  clientCommand(cache, "stat", "how much the cache takes, and may take", "ullage cache stat").action(
    async (options: ClientOptions) => show(await (await findDaemon(options)).call<CacheView>("/v1/cache"), options),
  );
  clientCommand(
    cache,
    "limit",
    "change how much the cache may take, until the daemon ends (`cache.capacity` in the configuration file: for good)",
    "ullage cache limit --capacity 200G",
  )
    .option("--capacity <size>", "bytes on disk, such as 200G; none: no limit of its own", capacityOption)
    .option("--reserve <percent>", "share of the file system that is left free", percentOption)
    .action(async (options: LimitOptions) => {
      const { capacity, reserve } = options;
      const body = {
        ...(capacity === undefined ? {} : { capacityBytes: capacity === "none" ? null : capacity }),
        ...(reserve === undefined ? {} : { reserve: reserve / 100 }),
      };
      if (Object.keys(body).length === 0) {
        throw new UllageError("usage", "there is nothing to change", { hint: "give --capacity or --reserve" });
      }
      show(await (await findDaemon(options)).call<CacheView>("/v1/cache", { method: "PATCH", body }), options);
    });
  clientCommand(
    cache,
    "evict [blob]",
    "throw out what no volume needs, or one blob, named by the beginning of its id",
    "ullage cache evict --bytes 10G",
  )
    .option("--bytes <size>", "no more than it takes to free so much", sizeOption)
    .action(async (given: string | undefined, options: ClientOptions & { bytes?: number }) => {
      const daemon = await findDaemon(options);
      const blob = given === undefined ? {} : { blob: (await findBlob(daemon, given)).id };
      const body = { ...blob, ...(options.bytes === undefined ? {} : { bytes: options.bytes }) };
      const freed = await daemon.call<{ freedBytes: number }>("/v1/cache/evict", { method: "POST", body });
      if (options.json === true) printJson(freed);
      else print(`${formatSize(freed.freedBytes)} freed`);
    });
  for (const [name, method, what] of [
    ["pin", "POST", "keep a blob, whether a volume needs it or not"],
    ["unpin", "DELETE", "keep a blob only while a volume needs it"],
  ] as const) {
    clientCommand(cache, `${name} <blob>`, what, `ullage cache ${name} 187b735edf8f`).action(
      async (given: string, options: ClientOptions) => {
        const daemon = await findDaemon(options);
        const { id } = await findBlob(daemon, given);
        const blob = await daemon.call<BlobView>(`/v1/blobs/${id}/pin`, { method });
        if (options.json === true) printJson(blob);
        else print(`blob ${id} is ${blob.kept ? "kept" : "kept only while a volume needs it"}`);
      },
    );
  }
}

interface LimitOptions extends ClientOptions {
  capacity?: number | "none";
  reserve?: number;
}

const capacityOption = (text: string): number | "none" => (text === "none" ? text : sizeOption(text));

function percentOption(text: string): number {
  const percent = Number(text);
  if (text.trim() !== "" && percent >= 0 && percent <= 100) return percent;
  throw new InvalidArgumentError("it is a percentage, 0 to 100");
}

function show(cache: CacheView, options: ClientOptions): void {
  if (options.json === true) {
    printJson(cache);
    return;
  }
  const { blobs, diskBytes, capacityBytes, reserve, evictedBytes } = cache;
  print(
    formatFields([
      ["blobs", String(blobs)],
      ["on disk", formatSize(diskBytes)],
      ["capacity", capacityBytes === null ? "what the file system has" : formatSize(capacityBytes)],
      ["left free", `${Math.round(reserve * 1000) / 10} % of the file system`],
      ["evicted", `${formatSize(evictedBytes)} since the start`],
    ]),
  );
}

/** @throws UllageError `not-found`, `ambiguous` */
async function findBlob(daemon: ApiClient, given: string): Promise<BlobView> {
  const blobs = await allPages<BlobView>(daemon, "/v1/blobs", "blobs");
  const found = blobs.filter(({ id }) => id.startsWith(given));
  if (found.length === 1) return found[0];
  const code = found.length === 0 ? "not-found" : "ambiguous";
  const what =
    found.length === 0 ? `there is no blob '${given}'` : `'${given}' begins the ids of ${found.length} blobs`;
  throw new UllageError(code, what, { hint: "`ullage cache ls` lists them" });
}

function describeSource({ sourceState }: BlobView): string {
  return { notNeeded: "not needed", notAsked: "not asked", ok: "ok", failing: "failing" }[sourceState.state];
}
