import type { Command } from "commander";
import { formatSize } from "../../base/units.ts";
import type { BlobView, ImageView } from "../../daemon/views.ts";
import { allPages, clientCommand, findDaemon, type ClientOptions } from "../client-command.ts";
import { formatFields, formatTable, print, printJson } from "../output.ts";
import { absoluteSource } from "../parse.ts";
import { describeIdentity } from "../describe-identity.ts";
import { findImage } from "../find-image.ts";
import { addTraceCommand } from "./image-trace.ts";

/** `ullage image …`: what volumes were made from. */
export function addImageCommand(program: Command): void {
  const image = program.command("image").description("the images in the cache (asks the daemon)");
  addChanges(image);
  addTraceCommand(image);
  clientCommand(image, "ls", "list what volumes were made from", "ullage image ls").action(
    async (options: ClientOptions) => {
      const images = await allPages<ImageView>(await findDaemon(options), "/v1/images", "images");
      if (options.json === true) {
        printJson({ images, next: null });
      } else if (images.length === 0) {
        print("there are no images: `ullage volume create NAME --from SOURCE` brings one");
      } else {
        print(
          formatTable(images, [
            { heading: "IMAGE", value: ({ id }) => id.slice(0, 12) },
            { heading: "FORMAT", value: ({ format }) => format },
            { heading: "SIZE", value: ({ size }) => formatSize(size), right: true },
            { heading: "CACHED", value: ({ readyBytes }) => formatSize(readyBytes), right: true },
            { heading: "VERSIONS", value: ({ blobs }) => String(blobs.length), right: true },
            { heading: "VOLUMES", value: ({ volumes }) => String(volumes.length), right: true },
            { heading: "SOURCE", value: ({ source }) => source, elastic: true },
          ]),
        );
      }
    },
  );
  clientCommand(
    image,
    "show <image>",
    "show one image, named by its source or the beginning of its id, and its versions in the cache",
    "ullage image show https://example.org/debian.raw",
  ).action(show);
}

interface PullOptions extends ClientOptions {
  format?: string;
  download?: boolean;
  unpinned?: boolean;
  allowBacking?: boolean;
}

function addChanges(image: Command): void {
  clientCommand(
    image,
    "pull <source>",
    "fetch an image whole, before a volume is made from it; Ctrl-C ends it, what was fetched stays",
    "ullage image pull https://example.org/debian.raw",
  )
    .option("--format <format>", "the image's format; default: by its first bytes")
    .option("--download", "fetch it in one go, for servers that can't serve ranges")
    .option("--unpinned", "accept a source that offers nothing to notice a change by")
    .option("--allow-backing", "read the backing files that a qcow2 image lies on, too")
    .action(async (source: string, options: PullOptions) => {
      const daemon = await findDaemon(options);
      const { callAndFollow } = await import("../follow-job.ts");
      const { format, download, unpinned, allowBacking } = options;
      const body = {
        source: absoluteSource(source),
        ...(format === undefined ? {} : { format }),
        ...(download === undefined ? {} : { download }),
        ...(unpinned === undefined ? {} : { unpinned }),
        ...(allowBacking === undefined ? {} : { allowBacking }),
      };
      const call = { method: "POST", body } as const;
      const pulled = await callAndFollow<ImageView>(daemon, "/v1/images", call, options.json === true);
      if (options.json === true) printJson(pulled);
      else print(`${pulled.source} is in the cache: ${formatSize(pulled.readyBytes)}`);
    });
  clientCommand(
    image,
    "rm <image>",
    "throw an image out of the cache that no volume was made from",
    "ullage image rm https://example.org/debian.raw",
  ).action(async (given: string, options: ClientOptions) => {
    const daemon = await findDaemon(options);
    const { id, source } = await findImage(daemon, given);
    await daemon.call(`/v1/images/${id}`, { method: "DELETE" });
    if (options.json !== true) print(`${source} is gone from the cache`);
  });
}

async function show(given: string, options: ClientOptions): Promise<void> {
  const daemon = await findDaemon(options);
  const image = await findImage(daemon, given);
  if (options.json === true) {
    printJson(image);
    return;
  }
  const versions = await Promise.all(image.blobs.map((id) => daemon.call<BlobView>(`/v1/blobs/${id}`)));
  print(
    formatFields([
      ["id", image.id],
      ["source", image.source],
      ["format", image.format],
      ["size", `${formatSize(image.size)} (${image.size} bytes)`],
      ["pinned by", describeIdentity(image)],
      ["cached", `${formatSize(image.readyBytes)}, ${formatSize(image.diskBytes)} on disk`],
      ["volumes", image.volumes.join(", ") || "-"],
      ["first used", image.createdAt],
      ...versions.map(({ id, size, readyBytes, identity }): [string, string] => [
        "version",
        `${id}: ${formatSize(readyBytes)} of ${formatSize(size)}${identity === null ? "" : `, ${identity}`}`,
      ]),
    ]),
  );
}
