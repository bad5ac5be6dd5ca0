import type { Argument, Command, Option } from "commander";
import { helpTopics } from "./help-topics.ts";

/*
 * What may come next on a command line, by the tree of commands itself: a new command or option is completed as soon as
 * it exists. The shells' scripts (completion-scripts.ts) ask for it at every TAB, by the hidden command `__complete`.
 */

/** What the daemon knows; asked only when it is needed. */
export interface CompletionSource {
  volumes(): Promise<string[]>;
  /** As `VOL@SNAP`. */
  snapshots(volume: string): Promise<string[]>;
  /** Those that were added. */
  exports(): Promise<string[]>;
  /** Ids of images. */
  images(): Promise<string[]>;
}

export interface Candidate {
  value: string;
  description: string;
}

/**
 * - words: these, and no others
 * - open: the same, but a word goes on behind them
 * - files, directories: whatever the shell finds
 */
export interface Completion {
  kind: "words" | "open" | "files" | "directories";
  candidates: Candidate[];
}

const nothing: Completion = { kind: "words", candidates: [] };

const topics: readonly Candidate[] = helpTopics.map(({ name, summary }) => candidate(name, summary));

/** Placeholders in usages: `<dir>`, `<file>`, … */
const fileNames = new Set(["file", "source"]);
const directoryNames = new Set(["dir", "data"]);
const volumeNames = new Set(["name", "volume", "vol[@snap]"]);
/** Commands whose `<name>` is made up by whoever types it. */
const makers = new Set(["create", "import"]);
/** Below these, `<name>` is the name of a volume. */
const volumeCommands = new Set(["volume", "attach", "detach"]);

/** @param words behind `ullage`; the last one is what is being typed, perhaps empty */
export async function complete(
  program: Command,
  words: readonly string[],
  source: CompletionSource,
): Promise<Completion> {
  const typed = words.at(-1) ?? "";
  const { command, wanting, positionals, optionsEnded } = walk(program, words.slice(0, -1));
  const another = wanting?.variadic === true && typed.startsWith("-"); // ends a list of values
  if (wanting !== undefined && !another) return completeValue(wanting, command, typed, source);
  if (typed.startsWith("-") && !optionsEnded) {
    const [flag, value] = typed.split(/=(.*)/s);
    if (value === undefined) return matching(flags(command), typed);
    const option = optionNamed(command, flag);
    if (option === undefined) return nothing;
    const found = await completeValue(option, command, value, source);
    return { ...found, candidates: found.candidates.map((each) => ({ ...each, value: `${flag}=${each.value}` })) };
  }
  const below = positionals === 0 ? subcommands(command) : [];
  if (below.length > 0) return matching(below, typed);
  const { registeredArguments } = command;
  const last = registeredArguments.at(-1);
  const argument = registeredArguments[positionals] ?? (last?.variadic === true ? last : undefined);
  return argument === undefined ? nothing : completeValue(argument, command, typed, source);
}

interface Place {
  command: Command;
  /** The option whose value comes next. */
  wanting: Option | undefined;
  positionals: number;
  /** `--` was there. */
  optionsEnded: boolean;
}

function walk(program: Command, words: readonly string[]): Place {
  const place: Place = { command: program, wanting: undefined, positionals: 0, optionsEnded: false };
  for (const word of words) {
    const { wanting } = place;
    if (!place.optionsEnded && word.startsWith("-") && word !== "-" && (wanting === undefined || wanting.variadic)) {
      place.optionsEnded = word === "--";
      const option = word.includes("=") ? undefined : optionNamed(place.command, word);
      place.wanting = option?.required === true ? option : undefined;
    } else if (wanting !== undefined) {
      if (!wanting.variadic) place.wanting = undefined;
    } else {
      const below = place.positionals > 0 ? undefined : place.command.commands.find((each) => hasName(each, word));
      if (below === undefined) place.positionals++;
      else place.command = below;
    }
  }
  return place;
}

async function completeValue(
  of: Option | Argument,
  command: Command,
  typed: string,
  source: CompletionSource,
): Promise<Completion> {
  if (of.argChoices !== undefined)
    return matching(
      of.argChoices.map((value) => candidate(value)),
      typed,
    );
  const placeholder = "flags" in of ? (/[<[]([^>\].]+)/.exec(of.flags)?.[1] ?? "") : of.name();
  if (fileNames.has(placeholder)) return { kind: "files", candidates: [] };
  if (directoryNames.has(placeholder)) return { kind: "directories", candidates: [] };
  if (placeholder === "topic") return matching([...topics, ...subcommands(command.parent!)], typed);
  if (placeholder === "vol@snap") return completeSnapshot(command, typed, source);
  if (placeholder === "vol[@snap]" && typed.includes("@")) return completeSnapshot(command, typed, source);
  if (placeholder === "image") return matching(candidates(await source.images()), typed);
  if (placeholder === "export") return matching(candidates(await source.exports()), typed);
  if (!volumeNames.has(placeholder)) return nothing;
  if (placeholder === "name" && (makers.has(command.name()) || !volumeCommands.has(path(command)[0]))) return nothing;
  return matching(candidates(await source.volumes()), typed);
}

async function completeSnapshot(command: Command, typed: string, source: CompletionSource): Promise<Completion> {
  const [volume, snapshot] = typed.split(/@(.*)/s);
  if (snapshot === undefined) {
    const volumes = await source.volumes();
    return {
      ...matching(
        volumes.map((name) => candidate(`${name}@`)),
        typed,
      ),
      kind: "open",
    };
  }
  if (command.name() === "create") return nothing; // it makes up a new name
  return matching(candidates(await source.snapshots(volume)), typed);
}

function candidates(names: readonly string[]): Candidate[] {
  return names.map((name) => candidate(name));
}

function matching(found: readonly Candidate[], typed: string): Completion {
  return { kind: "words", candidates: found.filter(({ value }) => value.startsWith(typed)) };
}

function subcommands(command: Command): Candidate[] {
  return command
    .createHelp()
    .visibleCommands(command)
    .map((each) => candidate(each.name(), each.description()));
}

function flags(command: Command): Candidate[] {
  return command
    .createHelp()
    .visibleOptions(command)
    .flatMap(({ long, description }) => (long == null ? [] : [candidate(long, description)]));
}

function optionNamed(command: Command, flag: string): Option | undefined {
  return command.options.find(({ long, short }) => flag === long || flag === short);
}

function hasName(command: Command, word: string): boolean {
  return command.name() === word || command.aliases().includes(word);
}

/** The names from below the program down to the command. */
function path(command: Command): string[] {
  return command.parent === null ? [] : [...path(command.parent), command.name()];
}

function candidate(value: string, description = ""): Candidate {
  return { value, description };
}
