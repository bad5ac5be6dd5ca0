import type { Command } from "commander";
import { formatExactSize } from "../../../base/units.ts";
import type { MapRunView } from "../../../daemon/views.ts";
import type { ApiClient } from "../../api-client.ts";
import { clientCommand, findDaemon, volumePath, type ClientOptions } from "../../client-command.ts";
import { formatTable, print } from "../../output.ts";

export function addMapCommand(parent: Command): void {
  clientCommand(
    parent,
    "map <name>",
    "which ranges are local, remote, written here or zero, and whose they are",
    "ullage volume map web1",
  ).action(async (name: string, options: ClientOptions) => {
    const pages = mapPages(await findDaemon(options), name);
    if (options.json === true) await printAsJson(pages);
    else for await (const runs of pages) print(formatRuns(runs));
  });
}

async function* mapPages(daemon: ApiClient, name: string): AsyncGenerator<MapRunView[]> {
  let offset: number | null = 0;
  while (offset !== null) {
    const page: { runs: MapRunView[]; next: number | null } = await daemon.call(
      `${volumePath(name, "map")}?offset=${offset}&limit=10000`,
    );
    yield page.runs;
    offset = page.next;
  }
}

/** One object, written page by page: a map can have millions of runs. */
async function printAsJson(pages: AsyncIterable<MapRunView[]>): Promise<void> {
  let separator = "";
  process.stdout.write('{"runs":[');
  for await (const runs of pages) {
    for (const run of runs) {
      process.stdout.write(`${separator}\n${JSON.stringify(run)}`);
      separator = ",";
    }
  }
  print('\n],"next":null}');
}

function formatRuns(runs: MapRunView[]): string {
  return formatTable(runs, [
    { heading: "OFFSET", value: ({ offset }) => String(offset), right: true },
    { heading: "LENGTH", value: ({ length }) => formatExactSize(length), right: true },
    { heading: "KIND", value: ({ kind }) => kind },
    { heading: "OWNER", value: ({ owner }) => owner ?? "-", elastic: true },
  ]);
}
