import { readFile, writeFile } from "node:fs/promises";
import { InvalidArgumentError, type Command } from "commander";
import { UllageError, describeError } from "../../base/errors.ts";
import { formatSize } from "../../base/units.ts";
import type { BootTrace } from "../../blob/boot-trace.ts";
import type { ImageView } from "../../daemon/views.ts";
import { clientCommand, findDaemon, type ClientOptions } from "../client-command.ts";
import { print, printJson } from "../output.ts";
import { findImage } from "../find-image.ts";

/** `ullage image trace …`: what disks made from an image read first. */
export function addTraceCommand(image: Command): void {
  const trace = image
    .command("trace")
    .description("what disks made from an image read first, and new ones therefore fetch first (asks the daemon)");
  clientCommand(
    trace,
    "record <volume>",
    "note what is read of a volume's image from now on, while its guest boots for instance",
    "ullage image trace record web1 --seconds 60",
  )
    .option("--seconds <seconds>", "for so long", secondsOption, 120)
    .action(async (volume: string, options: ClientOptions & { seconds: number }) => {
      const daemon = await findDaemon(options);
      const body = { seconds: options.seconds };
      const answer = await daemon.call<{ until: string }>(`/v1/volumes/${encodeURIComponent(volume)}/trace`, {
        method: "POST",
        body,
      });
      if (options.json === true) printJson(answer);
      else print(`what '${volume}' reads of its image is noted until ${answer.until}`);
    });
  clientCommand(
    trace,
    "export <image> <file>",
    "write an image's trace to a file, for other hosts; - is standard output",
    "ullage image trace export https://example.org/debian.raw boot.json",
  ).action(async (given: string, file: string, options: ClientOptions) => {
    const daemon = await findDaemon(options);
    const found = await daemon.call<BootTrace>(`/v1/images/${(await findImage(daemon, given)).id}/trace`);
    const text = `${JSON.stringify(found)}\n`;
    if (file === "-") process.stdout.write(text);
    else await writeFile(file, text, { mode: 0o644 });
    if (file !== "-" && options.json !== true) print(`${found.reads.length} reads are in ${file}`);
  });
  clientCommand(
    trace,
    "replay <image> [file]",
    "fetch what an image's trace names, or take the trace of a file first",
    "ullage image trace replay https://example.org/debian.raw boot.json",
  ).action(async (given: string, file: string | undefined, options: ClientOptions) => {
    const daemon = await findDaemon(options);
    const { id } = await findImage(daemon, given);
    if (file !== undefined) {
      await daemon.call(`/v1/images/${id}/trace`, { method: "POST", body: await readTrace(file) });
    }
    const { callAndFollow } = await import("../follow-job.ts");
    const call = { method: "POST" } as const;
    const done = await callAndFollow<ImageView>(daemon, `/v1/images/${id}/trace/replay`, call, options.json === true);
    if (options.json === true) printJson(done);
    else print(`what ${done.source} is read for first is here: ${formatSize(done.readyBytes)} in the cache`);
  });
}

async function readTrace(file: string): Promise<object> {
  try {
    return JSON.parse(await readFile(file, "utf8")) as object;
  } catch (cause) {
    throw new UllageError("bad-trace", `${file} can't be read as a trace: ${describeError(cause)}`, {
      hint: "`ullage image trace export` writes one",
      cause,
    });
  }
}

function secondsOption(text: string): number {
  const seconds = Number(text);
  if (Number.isInteger(seconds) && seconds >= 1 && seconds <= 3600) return seconds;
  throw new InvalidArgumentError("it is a whole number of seconds, 1 to 3600");
}
