import type { Command } from "commander";
import { askDaemon, clientCommand, type ClientOptions } from "../../client-command.ts";
import { formatTable, print, printJson } from "../../output.ts";

interface Token {
  name: string;
  scope: string;
  createdAt: string;
  expiresAt: string | null;
  expired: boolean;
  lastUsedAt: string | null;
}

export function addTokenLsCommand(parent: Command): void {
  clientCommand(parent, "ls", "list the tokens", "ullage token ls").action(async (options: ClientOptions) => {
    const answer = await askDaemon<{ tokens: Token[] }>(options, "/v1/tokens");
    if (options.json === true) {
      printJson(answer);
    } else if (answer.tokens.length === 0) {
      print("there are no tokens: make one with `ullage token create NAME --scope read`");
    } else {
      print(
        formatTable(answer.tokens, [
          { heading: "NAME", value: ({ name }) => name, elastic: true },
          { heading: "SCOPE", value: ({ scope }) => scope },
          { heading: "CREATED", value: ({ createdAt }) => minute(createdAt) },
          { heading: "EXPIRES", value: ({ expiresAt, expired }) => (expired ? "expired" : minute(expiresAt)) },
          { heading: "LAST USED", value: ({ lastUsedAt }) => minute(lastUsedAt) },
        ]),
      );
    }
  });
}

/** `2026-07-01 14:30Z` */
function minute(time: string | null): string {
  return time === null ? "-" : `${time.slice(0, 10)} ${time.slice(11, 16)}Z`;
}
