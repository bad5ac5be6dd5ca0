import { Option, type Command } from "commander";
import { UllageError } from "../../../base/errors.ts";
import { formatSize } from "../../../base/units.ts";
import type { Settings } from "../../../catalog/metadata-store.ts";
import type { CreateVolumeRequest, VolumeView } from "../../../daemon/views.ts";
import type { Call } from "../../api-client.ts";
import { clientCommand, findDaemon, type ClientOptions } from "../../client-command.ts";
import { print, printJson } from "../../output.ts";
import { absoluteSource, settingOption, sizeOption } from "../../parse.ts";

interface Options extends ClientOptions {
  from?: string;
  snapshot?: string;
  clone?: string;
  size?: number;
  format?: string;
  hydrate?: Settings["hydrate"];
  set?: Partial<Settings>;
  download?: boolean;
  unpinned?: boolean;
  allowBacking?: boolean;
}

export function addCreateCommand(parent: Command): void {
  clientCommand(
    parent,
    "create <name>",
    "make a volume from an image, or an empty one",
    "ullage volume create web1 --from https://example.org/debian.raw --size 20G",
  )
    .option("--from <source>", "the image: a path or URL")
    .option("--snapshot <vol@snap>", "begin as a snapshot is")
    .option("--clone <volume>", "begin as another volume is now")
    .option("--size <size>", "512, 64k, 10M, 1.5G, 2T; default: the image's", sizeOption)
    .option("--format <format>", "the image's format; default: by its first bytes")
    .addOption(new Option("--hydrate <when>", "fetch the image in the background").choices(["auto", "off"]))
    .option("--set <key=value>", "a setting, e.g. sync=always, cache=none; may be repeated", settingOption)
    .option("--download", "fetch the whole image first, for servers that can't serve ranges; Ctrl-C cancels it")
    .option("--unpinned", "accept a source that offers nothing to notice a change by")
    .option("--allow-backing", "read the backing files that a qcow2 image lies on, too")
    .action(async (name: string, options: Options) => {
      const body = requestFor(name, options);
      const volume = await make(options, { method: "POST", body, once: true });
      if (options.json === true) printJson(volume);
      else print(`${volume.name} is ready: ${formatSize(volume.size)}, NBD export '${volume.name}'`);
    });
}

async function make(options: Options, call: Call): Promise<VolumeView> {
  const daemon = await findDaemon(options);
  if (options.from === undefined) return daemon.call("/v1/volumes", call);
  const { callAndFollow } = await import("../../follow-job.ts");
  return callAndFollow(daemon, "/v1/volumes", call, options.json === true);
}

function requestFor(name: string, options: Options): CreateVolumeRequest {
  const { from, snapshot, clone, size, format, download, unpinned, allowBacking } = options;
  const origins = [from, snapshot, clone].filter((origin) => origin !== undefined).length;
  if (origins === 0 && size === undefined) {
    throw new UllageError("usage", "a volume needs an image or a size", {
      hint: "give --from SOURCE, --snapshot VOL@SNAP, --clone VOL or --size S",
    });
  }
  if (origins > 1) {
    throw new UllageError("usage", "a volume begins as one thing", {
      hint: "give only one of --from, --snapshot and --clone",
    });
  }
  if (from === undefined && (format ?? download ?? unpinned ?? allowBacking) !== undefined) {
    throw new UllageError("usage", "--format, --download, --unpinned and --allow-backing are about an image", {
      hint: "give --from SOURCE as well",
    });
  }
  const settings = { ...options.set, ...(options.hydrate === undefined ? {} : { hydrate: options.hydrate }) };
  return {
    name,
    ...(size === undefined ? {} : { size }),
    ...(snapshot === undefined ? {} : { from: { snapshot } }),
    ...(clone === undefined ? {} : { from: { volume: clone } }),
    ...(from === undefined
      ? {}
      : {
          from: {
            source: absoluteSource(from),
            ...(format === undefined ? {} : { format }),
            ...(download === undefined ? {} : { download }),
            ...(unpinned === undefined ? {} : { unpinned }),
            ...(allowBacking === undefined ? {} : { allowBacking }),
          },
        }),
    ...(Object.keys(settings).length === 0 ? {} : { settings }),
  };
}
