import type { Command } from "commander";
import { formatSize } from "../../base/units.ts";
import type { BlobView } from "../../daemon/views.ts";
import { allPages, clientCommand, findDaemon, type ClientOptions } from "../client-command.ts";
import { formatTable, print, printJson } from "../output.ts";

/** `ullage cache …`: what is here of the images. */
export function addCacheCommand(program: Command): void {
  const cache = program.command("cache").description("look at the cache that all volumes share (asks the daemon)");
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

function describeSource({ sourceState }: BlobView): string {
  return { notNeeded: "not needed", notAsked: "not asked", ok: "ok", failing: "failing" }[sourceState.state];
}
