import { UllageError } from "../base/errors.ts";
import { parseExportInfo, type ExportInfo } from "./export-info.ts";
import {
  GREETING_MAGIC_HIGH,
  GREETING_MAGIC_LOW,
  HandshakeFlag,
  Option,
  OPTION_HEADER_BYTES,
  OPTION_MAGIC_HIGH,
  OPTION_MAGIC_LOW,
  OPTION_REPLY_MAGIC_HIGH,
  OPTION_REPLY_MAGIC_LOW,
  OptionReply,
} from "./protocol.ts";
import { printable } from "./printable.ts";

/** More than any reply to our options needs. */
const MAX_REPLY_BYTES = 64 * 1024;
const MAX_REPLIES = 100;

/** The bytes of a connection in order. All reject when it is gone. */
export interface HandshakeStream {
  read(length: number): Promise<Buffer>;
  write(bytes: Buffer): void;
  /** TLS from the next byte on. */
  secure(): Promise<void>;
}

/** What is wanted of a server. */
export interface HandshakeWish {
  exportName: string;
  /** Nothing is asked for, and no export named, before TLS is on. */
  tls: boolean;
  /** Information about the export that is not told unasked (`Info`). */
  infos: readonly number[];
  /** A metadata context, if the server has it. */
  context?: string;
}

/** What was agreed on. */
export interface Negotiated {
  info: ExportInfo;
  /** Whether reads are answered with structured replies. */
  structured: boolean;
  /** The number of the context that was wished for. */
  contextId: number | undefined;
}

/** The server answers, and won't let us in: it knows no such export, takes no more clients, or wants TLS. */
export class RefusedError extends UllageError {
  /** The type of the option's reply (`OptionReply`). */
  readonly reply: number;

  constructor(reply: number, reason: string) {
    super("nbd-refused", reason);
    this.reply = reply;
  }
}

/**
 * The client's side of fixed newstyle negotiation ("Handshake"): TLS, structured replies, a metadata context, then GO. When
 * it resolves, the next byte is of transmission.
 * @throws RefusedError when the server answers GO with an error; UllageError `nbd-tls` when it has no TLS, or `nbd-handshake`
 * on anything unexpected
 */
export async function handshake(stream: HandshakeStream, wish: HandshakeWish): Promise<Negotiated> {
  const greeting = await stream.read(18);
  const magic = [0, 4, 8, 12].map((at) => greeting.readUInt32BE(at));
  const expected = [GREETING_MAGIC_HIGH, GREETING_MAGIC_LOW, OPTION_MAGIC_HIGH, OPTION_MAGIC_LOW];
  if (magic.some((word, index) => word !== expected[index])) throw unexpected("it greets like no NBD server");
  const flags = HandshakeFlag.fixedNewstyle | HandshakeFlag.noZeroes;
  if ((greeting.readUInt16BE(16) & flags) !== flags) throw unexpected("it does not speak fixed newstyle");
  const reply = Buffer.alloc(4);
  reply.writeUInt32BE(flags);
  stream.write(reply);

  if (wish.tls) await startTls(stream);
  const structured = await askForStructuredReplies(stream);
  const contextId = structured ? await askForContext(stream, wish) : undefined;
  return { info: await go(stream, wish), structured, contextId };
}

async function startTls(stream: HandshakeStream): Promise<void> {
  stream.write(optionRequest(Option.startTls, Buffer.alloc(0)));
  const reply = await readOptionReply(stream, Option.startTls);
  if (reply.type !== OptionReply.ack) {
    throw new UllageError("nbd-tls", `the NBD server does not start TLS: ${reasonOf(reply)}`, {
      hint: "nothing is read without TLS where nbds:// asks for it: let the server offer it",
    });
  }
  await stream.secure();
}

async function askForStructuredReplies(stream: HandshakeStream): Promise<boolean> {
  stream.write(optionRequest(Option.structuredReply, Buffer.alloc(0)));
  const reply = await readOptionReply(stream, Option.structuredReply);
  // Whatever else is wrong, as a server that demands TLS, is said by the reply to GO.
  return reply.type === OptionReply.ack;
}

async function askForContext(stream: HandshakeStream, wish: HandshakeWish): Promise<number | undefined> {
  if (wish.context === undefined) return undefined;
  const query = Buffer.concat([number32(1), counted(wish.context)]);
  stream.write(optionRequest(Option.setMetaContext, Buffer.concat([counted(wish.exportName), query])));
  let id: number | undefined;
  for (let count = 0; count < MAX_REPLIES; count++) {
    const { type, data } = await readOptionReply(stream, Option.setMetaContext);
    if (type === OptionReply.ack) return id;
    if (type !== OptionReply.metaContext) return undefined; // an older server, or one without this export: GO says so
    if (data.length >= 4 && data.toString("utf8", 4) === wish.context) id = data.readUInt32BE(0);
  }
  throw unexpected(`more than ${MAX_REPLIES} replies to SET_META_CONTEXT`);
}

async function go(stream: HandshakeStream, { exportName, infos }: HandshakeWish): Promise<ExportInfo> {
  const wanted = Buffer.alloc(2 + 2 * infos.length);
  wanted.writeUInt16BE(infos.length);
  for (const [index, type] of infos.entries()) wanted.writeUInt16BE(type, 2 + 2 * index);
  stream.write(optionRequest(Option.go, Buffer.concat([counted(exportName), wanted])));
  const told: Buffer[] = [];
  for (let count = 0; count < MAX_REPLIES; count++) {
    const { type, data } = await readOptionReply(stream, Option.go);
    if (type === OptionReply.ack) return parseExportInfo(told);
    if (type === OptionReply.unsupported) throw unexpected("it does not know NBD_OPT_GO");
    if (type !== OptionReply.info) throw new RefusedError(type, reasonOf({ type, data }));
    told.push(data);
  }
  throw unexpected(`more than ${MAX_REPLIES} replies to GO`);
}

interface Reply {
  type: number;
  data: Buffer;
}

async function readOptionReply(stream: HandshakeStream, option: number): Promise<Reply> {
  const header = await stream.read(20);
  if (header.readUInt32BE(0) !== OPTION_REPLY_MAGIC_HIGH || header.readUInt32BE(4) !== OPTION_REPLY_MAGIC_LOW) {
    throw unexpected("an option reply without the magic");
  }
  if (header.readUInt32BE(8) !== option) throw unexpected(`a reply to option ${header.readUInt32BE(8)}, not ${option}`);
  const length = header.readUInt32BE(16);
  if (length > MAX_REPLY_BYTES) throw unexpected(`an option reply of ${length} bytes`);
  return { type: header.readUInt32BE(12), data: await stream.read(length) };
}

/** Error replies carry a message for people. */
function reasonOf({ type, data }: Reply): string {
  if (type === OptionReply.tlsRequired) return "the server requires TLS";
  return data.length > 0 ? printable(data) : (replyNames[type] ?? `option reply 0x${type.toString(16)}`);
}

const replyNames: Record<number, string> = {
  [OptionReply.unsupported]: "it does not know that",
  [OptionReply.policy]: "its policy forbids it",
  [OptionReply.unknown]: "it has no such export",
  [OptionReply.shutdown]: "it is shutting down",
};

function optionRequest(option: number, data: Buffer): Buffer {
  const header = Buffer.alloc(OPTION_HEADER_BYTES);
  header.writeUInt32BE(OPTION_MAGIC_HIGH, 0);
  header.writeUInt32BE(OPTION_MAGIC_LOW, 4);
  header.writeUInt32BE(option, 8);
  header.writeUInt32BE(data.length, 12);
  return Buffer.concat([header, data]);
}

/** A string behind its length. */
function counted(text: string): Buffer {
  const bytes = Buffer.from(text, "utf8");
  return Buffer.concat([number32(bytes.length), bytes]);
}

function number32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

function unexpected(what: string): UllageError {
  return new UllageError("nbd-handshake", `the NBD server can't be used: ${what}`);
}
