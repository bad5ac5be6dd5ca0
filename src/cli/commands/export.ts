import type { Command } from "commander";
import type { ExportView } from "../../daemon/views.ts";
import { allPages, askDaemon, clientCommand, findDaemon, type ClientOptions } from "../client-command.ts";
import { formatTable, print, printJson } from "../output.ts";

interface AddOptions extends ClientOptions {
  nbd: string;
  readOnly?: boolean;
  description?: string;
}

/** `ullage export …`: further names under which volumes and snapshots are served. */
export function addExportCommand(program: Command): void {
  const exports = program
    .command("export")
    .description("add, list and remove names under which clients find disks (asks the daemon)");
  clientCommand(
    exports,
    "add <vol[@snap]>",
    "export a volume or a snapshot under a further name; the name follows when the volume is renamed",
    "ullage export add web1 --nbd web1-backup --read-only",
  )
    .requiredOption("--nbd <exportname>", "the name that NBD clients ask for")
    .option("--read-only", "refuse writes that come under this name")
    .option("--description <text>", "shown in lists, to NBD clients as well")
    .action(add);
  clientCommand(
    exports,
    "ls [volume]",
    "list the exports of a volume and its snapshots, or all",
    "ullage export ls web1",
  ).action(list);
  clientCommand(
    exports,
    "rm <export>",
    "remove a name that was added; connections that are open stay",
    "ullage export rm web1-backup",
  ).action(async (name: string, options: ClientOptions) => {
    await askDaemon(options, `/v1/exports/${encodeURIComponent(name)}`, { method: "DELETE" });
    if (options.json === true) printJson({ name, removed: true });
    else print(`${name} is no export any more`);
  });
}

async function add(target: string, options: AddOptions): Promise<void> {
  const { nbd: name, readOnly, description } = options;
  const body = {
    name,
    target,
    ...(readOnly === undefined ? {} : { readOnly }),
    ...(description === undefined ? {} : { description }),
  };
  const added = await askDaemon<ExportView>(options, "/v1/exports", { method: "POST", body, once: true });
  if (options.json === true) printJson(added);
  else print([`${name} is ${target}${added.readOnly ? ", read-only" : ""}`, ...added.uris].join("\n  "));
}

async function list(volume: string | undefined, options: ClientOptions): Promise<void> {
  const path = volume === undefined ? "/v1/exports" : `/v1/volumes/${encodeURIComponent(volume)}/exports`;
  const exports = await allPages<ExportView>(await findDaemon(options), path, "exports");
  if (options.json === true) {
    printJson({ exports, next: null });
  } else if (exports.length === 0) {
    print("there are no exports: each volume is one, make one with `ullage volume create`");
  } else {
    print(
      formatTable(exports, [
        { heading: "EXPORT", value: ({ name }) => name },
        { heading: "OF", value: describeTarget, elastic: true },
        { heading: "ACCESS", value: ({ readOnly }) => (readOnly ? "read-only" : "read-write") },
        { heading: "URI", value: ({ uris }) => uris[0] ?? "-" },
      ]),
    );
  }
}

function describeTarget({ volume, snapshot, implicit, description }: ExportView): string {
  if (implicit) return snapshot === null ? "itself" : "snapshot";
  const target = snapshot === null ? volume : `${volume}@${snapshot}`;
  return description === null ? target : `${target}: ${description}`;
}
