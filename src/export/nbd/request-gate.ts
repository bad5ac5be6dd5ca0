import { MAX_PAYLOAD_BYTES } from "./limits.ts";
import { Command, CommandFlag, NbdError } from "../../nbd/protocol.ts";

/** Why a request is refused before the device sees it. */
export interface Refusal {
  error: number;
  message: string;
}

/** What the gate needs to know of the connection. */
export interface GateRules {
  readonly size: number;
  readonly readOnly: boolean;
  readonly structured: boolean;
  readonly hasContexts: boolean;
}

export const commandNames: readonly string[] = [
  "read",
  "write",
  "disconnect",
  "flush",
  "trim",
  "cache",
  "write-zeroes",
  "block-status",
];

/**
 * The one place that decides whether a request may go to the device ("Request types", "Command flags", "Error values").
 * @param offset bytes; anything from 2^53 on may be passed rounded, since no export is that large
 */
export function refuse(
  rules: GateRules,
  command: number,
  flags: number,
  offset: number,
  length: number,
): Refusal | undefined {
  const name = commandNames[command];
  if (name === undefined) return { error: NbdError.EINVAL, message: `unknown command ${command}` };
  if ((flags & ~allowedFlags(rules, command)) !== 0) {
    return { error: NbdError.EINVAL, message: `flags 0x${flags.toString(16)} are not valid for ${name}` };
  }
  const modifies = command === Command.write || command === Command.trim || command === Command.writeZeroes;
  if (modifies && rules.readOnly) return { error: NbdError.EPERM, message: "the export is read-only" };
  if (command === Command.flush) {
    if (offset === 0 && length === 0) return undefined;
    return { error: NbdError.EINVAL, message: "flush takes no range" };
  }
  if (command === Command.blockStatus && !rules.hasContexts) {
    return { error: NbdError.EINVAL, message: "no metadata context was negotiated" };
  }
  if (length === 0) return { error: NbdError.EINVAL, message: `${name} of zero bytes` };
  if ((command === Command.read || command === Command.write) && length > MAX_PAYLOAD_BYTES) {
    return {
      error: command === Command.read ? NbdError.EOVERFLOW : NbdError.EINVAL,
      message: `${name} of ${length} bytes is above the limit of ${MAX_PAYLOAD_BYTES}`,
    };
  }
  if (length > rules.size || offset > rules.size - length) {
    const beyond = command === Command.write || command === Command.writeZeroes;
    return {
      error: beyond ? NbdError.ENOSPC : NbdError.EINVAL,
      message: `${name} of ${length} bytes at ${offset} is beyond the end of the export, ${rules.size}`,
    };
  }
  return undefined;
}

/** FUA is valid for all commands once NBD_FLAG_SEND_FUA was announced. */
function allowedFlags(rules: GateRules, command: number): number {
  switch (command) {
    case Command.read:
      return CommandFlag.fua | (rules.structured ? CommandFlag.df : 0);
    case Command.writeZeroes:
      return CommandFlag.fua | CommandFlag.noHole | CommandFlag.fastZero;
    case Command.blockStatus:
      return CommandFlag.fua | CommandFlag.reqOne;
    default:
      return CommandFlag.fua;
  }
}
