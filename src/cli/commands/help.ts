import type { Command } from "commander";
import { UllageError } from "../../base/errors.ts";
import { didYouMean } from "../../base/similar.ts";
import { helpTopics } from "../help-topics.ts";
import { print } from "../output.ts";

/** `ullage help`: of a command, or a page about a topic. */
export function addHelpCommand(program: Command): void {
  const topics = helpTopics.map(({ name, summary }) => `  ${name.padEnd(12)}${summary}`).join("\n");
  program.addHelpText("after", `\nTopics (ullage help TOPIC):\n${topics}`);
  program
    .helpCommand(false)
    .command("help [topic...]")
    .description("the help of a command, or a page about a topic")
    .addHelpText("after", `\nTopics:\n${topics}\n\nExample:\n  $ ullage help durability`)
    .action((words: string[]) => showHelp(program, words));
}

/** @throws UllageError `usage` */
function showHelp(program: Command, words: readonly string[]): void {
  const topic = helpTopics.find(({ name }) => name === words.join(" "));
  if (topic !== undefined) {
    print(topic.text());
    return;
  }
  let command = program;
  for (const word of words) {
    const below = command.commands.find((each) => each.name() === word || each.aliases().includes(word));
    if (below === undefined) throw unknown(program, command, word);
    command = below;
  }
  command.outputHelp();
}

function unknown(program: Command, command: Command, word: string): UllageError {
  const names = command
    .createHelp()
    .visibleCommands(command)
    .map((each) => each.name());
  const known = command === program ? [...names, ...helpTopics.map(({ name }) => name)] : names;
  const hint = didYouMean(word, known) ?? "`ullage help` lists commands and topics";
  return new UllageError("usage", `there is no help about '${word}'`, { hint });
}
