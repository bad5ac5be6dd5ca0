import { resolve } from "node:path";
import { InvalidArgumentError, Option, type Command } from "commander";
import { UllageError } from "../../base/errors.ts";
import { formatSize } from "../../base/units.ts";
import type { NewFileSystem } from "../../attach/file-system.ts";
import type { AttachmentView, Via } from "../../attach/state.ts";
import type { ExportView, HealthView, VolumeView } from "../../daemon/views.ts";
import { attachedVolumes, type AttachedVolume } from "../attached-volumes.ts";
import { askDaemon, clientCommand, volumePath, type ClientOptions } from "../client-command.ts";
import { formatTable, print, printJson } from "../output.ts";
import { withSuggestion } from "../volume-names.ts";

const defaultTimeoutSeconds = 300;

interface Options extends ClientOptions {
  mount?: string;
  mkfs?: NewFileSystem;
  readOnly?: boolean;
  via: Via | "auto";
  grow?: boolean;
  timeout: number;
}

export function addAttachCommand(program: Command): void {
  clientCommand(
    program,
    "attach [name]",
    "make a volume a block device of this host, and mount it; without a name: list what is attached",
    "ullage attach web1 --mount /mnt/web1",
  )
    .option("--mount <dir>", "mount its file system there")
    .addOption(
      new Option("--mkfs <type>", "make a file system first, if there is nothing on it").choices(["ext4", "xfs"]),
    )
    .option("--read-only", "let nobody on this host write to it")
    .addOption(
      new Option("--via <way>", "the kernel's NBD client, or nbdfuse; auto: the kernel's where it can be used")
        .choices(["auto", "kernel", "fuse"])
        .default("auto"),
    )
    .option("--grow", "it is attached already: make the device as large as the volume is now")
    .option(
      "--timeout <time>",
      "how long requests wait for a daemon that is away, e.g. 30s or 5m; then they fail",
      timeOption,
      defaultTimeoutSeconds,
    )
    .action(async (name: string | undefined, options: Options) => {
      if (name === undefined) await list(options);
      else if (options.grow === true) await growDevice(name, options);
      else await attachVolume(name, options);
    });
}

async function attachVolume(name: string, options: Options): Promise<void> {
  if (options.readOnly === true && options.mkfs !== undefined) {
    throw new UllageError("usage", "--mkfs writes, --read-only forbids it");
  }
  const { attach } = await import("../../attach/attach.ts");
  const { nbdAddressOf } = await import("../../attach/daemon-address.ts");
  await refuseRemoteDaemon(options);
  const health = await askDaemon<HealthView>(options, "/v1/health");
  const view = await attach({
    name,
    exportName: await exportNameOf(name, options),
    mount: options.mount === undefined ? null : resolve(options.mount),
    mkfs: options.mkfs ?? null,
    readOnly: options.readOnly === true,
    via: options.via === "auto" ? null : options.via,
    timeoutMs: options.timeout * 1000,
    address: nbdAddressOf(health.listeners),
    dataDirectory: health.dataDirectory,
  }).catch(async (error: unknown) => {
    throw await withSuggestion(error, (path) => askDaemon(options, path));
  });
  if (options.json === true) {
    printJson(view);
    return;
  }
  const where = view.mounts.length > 0 ? `, mounted at ${view.mounts.join(", ")}` : "";
  const fileOnly = view.device === null ? " (a plain file: devices and mounts need root and loop devices)" : "";
  print(`${name} is attached: ${view.device ?? view.file}${where}${view.readOnly ? ", read-only" : ""}${fileOnly}
It keeps its size of ${formatSize(view.size)} while it is attached: after a resize ${howToGrow(view)}.
Take it away with: ullage detach ${name}`);
}

async function growDevice(name: string, options: Options): Promise<void> {
  const { grow } = await import("../../attach/grow.ts");
  const view = await grow(name);
  if (view === undefined) {
    throw new UllageError("not-attached", `'${name}' is not attached`, { hint: `ullage attach ${name}` });
  }
  if (options.json === true) printJson(view);
  else print(`${view.device} has ${formatSize(view.size)}: a file system on it grows with resize2fs or xfs_growfs`);
}

/** What makes the volume's new size that of what is attached. */
export function howToGrow({ name, via }: AttachmentView): string {
  return via === "kernel" ? `run \`ullage attach ${name} --grow\`` : "detach it and attach it again";
}

/** A volume or snapshot by the volume's id, which outlives a rename; a name that was added is bound to its volume itself. */
async function exportNameOf(name: string, options: Options): Promise<string> {
  const [volume, snapshot] = name.split(/@(.*)/s);
  const found = await askDaemon<ExportView>(options, `/v1/exports/${encodeURIComponent(name)}`).catch(() => undefined);
  if (found?.implicit === false) return name;
  const { id } = await askDaemon<VolumeView>(options, volumePath(volume)); // fails with what was probably meant
  return snapshot === undefined ? id : `${id}@${snapshot}`;
}

/** A daemon elsewhere names sockets and ports of its own machine: on this one they may be another daemon's. */
async function refuseRemoteDaemon({ api, tokenFile }: Options): Promise<void> {
  const { findApiServer } = await import("../api-server.ts");
  const { isLoopback } = await import("../../export/listen-address.ts");
  const { kind, name, target } = findApiServer(api, tokenFile);
  if (kind === "unix" || isLoopback(target.host ?? "")) return;
  throw new UllageError("attach-remote", `the daemon at ${name} is not on this machine`, {
    hint: "run attach where the daemon is; elsewhere use its NBD address with nbd-client, nbdfuse or QEMU",
  });
}

async function list(options: Options): Promise<void> {
  const { listAttachments } = await import("../../attach/list.ts");
  const attachments = listAttachments();
  const now = attachments.length === 0 ? [] : await attachedVolumes(attachments, options);
  if (options.json === true) {
    const views = attachments.map((view, index) => ({ ...view, volume: now[index]?.name ?? null }));
    printJson({ attachments: views, next: null });
    return;
  }
  if (attachments.length === 0) {
    print("nothing is attached: `ullage attach NAME --mount DIR` does it");
    return;
  }
  print(
    formatTable(attachments, [
      { heading: "NAME", value: (view) => nameNow(view, now[attachments.indexOf(view)]) },
      { heading: "DEVICE", value: ({ device, file }) => device ?? file ?? "-" },
      { heading: "VIA", value: ({ via }) => via },
      { heading: "MOUNTED AT", value: ({ mounts }) => mounts.join(", ") || "-" },
      { heading: "SIZE", value: ({ size }) => formatSize(size), right: true },
      { heading: "SINCE", value: ({ since }) => since.replace(/\.\d+Z$/, "Z") },
      { heading: "STATE", value: describeState, elastic: true },
    ]),
  );
  for (const [index, view] of attachments.entries()) {
    const size = now[index]?.size ?? 0;
    if (view.state === "attached" && size > view.size) {
      print(`${nameNow(view, now[index])} has grown to ${formatSize(size)}: ${howToGrow(view)} to use that`);
    }
  }
}

function describeState({ state, reason, readOnly }: AttachmentView): string {
  return `${state}${readOnly ? ", read-only" : ""}${reason === null ? "" : `: ${reason}`}`;
}

/** The name to detach it by, and that of the volume if it is another one by now. */
function nameNow({ name }: AttachmentView, volume: AttachedVolume | undefined): string {
  return volume === undefined || volume.name === name ? name : `${name} (now ${volume.name})`;
}

/** @returns seconds */
function timeOption(text: string): number {
  const match = /^(\d+)([smh]?)$/.exec(text);
  const seconds = match === null ? 0 : Number(match[1]) * { "": 1, s: 1, m: 60, h: 3600 }[match[2]]!;
  if (seconds > 0 && seconds <= 86_400) return seconds;
  throw new InvalidArgumentError("a time looks like 30s, 5m or 1h, and is at most 24h");
}
