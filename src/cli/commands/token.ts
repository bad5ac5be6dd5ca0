import type { Command } from "commander";
import { addTokenCreateCommand } from "./token/create.ts";
import { addTokenLsCommand } from "./token/ls.ts";
import { addTokenRmCommand } from "./token/rm.ts";

/** `ullage token …`: who may use the API over TCP. */
export function addTokenCommand(program: Command): void {
  const token = program
    .command("token")
    .description("make, list and remove tokens for the API on TCP (asks the daemon)");
  addTokenCreateCommand(token);
  addTokenLsCommand(token);
  addTokenRmCommand(token);
}
