import { SourceError, UllageError } from "../../base/errors.ts";
import { RefusedError } from "../../nbd/client-handshake.ts";
import { NbdError, OptionReply } from "../../nbd/protocol.ts";
import { badAnswer, timedOut, tlsFailed, unreachable } from "../source-errors.ts";

/** Why there is no connection. @param where the export, for people */
export function connectError(where: string, error: unknown): Error {
  const policy = causes(error).find((cause) => cause instanceof SourceError);
  if (policy !== undefined) return policy;
  if (!(error instanceof UllageError)) return unreachable(`${where} cannot be reached`, error);
  if (error instanceof RefusedError) return refusal(where, error);
  switch (error.code) {
    case "nbd-timeout":
      return timedOut(`${where}: no connection in time`, {
        hint: "check that an NBD server listens there, and whether this host reaches it",
        cause: error.cause,
      });
    case "nbd-tls":
      return tlsFailed(`${where}: ${error.message}`, error.hint ?? tlsHint, error.cause);
    case "nbd-handshake":
      return badAnswer(`${where}: ${error.message}`, error.cause);
    default:
      return unreachable(`${where} cannot be reached`, error.cause);
  }
}

const tlsHint =
  "check the host, the certificates or the key, and that the server uses the same kind; ?tls-certificates=DIR names authorities of your own";

function refusal(where: string, error: RefusedError): SourceError {
  const message = `${where} is refused: ${error.message}`;
  switch (error.reply) {
    case OptionReply.unknown:
      return new SourceError("source-not-found", message, {
        transient: false,
        hint: "nbdinfo --list shows what the server exports",
      });
    case OptionReply.tlsRequired:
      return new SourceError("source-tls", message, { transient: false, hint: "write nbds:// instead of nbd://" });
    case OptionReply.shutdown:
      return unreachable(message);
    default:
      return new SourceError("source-denied", message, {
        transient: false,
        hint: "see the server's log for the reason",
      });
  }
}

/** A request that the server answered with an error ("Error values"). */
export function replyError(where: string, what: string, error: number, message: string): SourceError {
  const name = Object.entries(NbdError).find(([, value]) => value === error)?.[0] ?? `error ${error}`;
  const text = `${where} answered a ${what} with ${name}${message === "" ? "" : `: ${message}`}`;
  switch (error) {
    case NbdError.EPERM:
      return new SourceError("source-denied", text, { transient: false, hint: "see the server's log for the reason" });
    case NbdError.ESHUTDOWN:
      return unreachable(text);
    case NbdError.EINVAL:
    case NbdError.EOVERFLOW:
    case NbdError.ENOTSUP:
      return badAnswer(text);
    default:
      return new SourceError("source-io", text, { transient: true, hint: "see the server's log for the reason" });
  }
}

function causes(error: unknown): Error[] {
  const chain: Error[] = [];
  for (let at = error; at instanceof Error && chain.length < 10; at = at.cause) chain.push(at);
  return chain;
}
