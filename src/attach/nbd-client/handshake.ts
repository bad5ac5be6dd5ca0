import { UllageError } from "../../base/errors.ts";
import { parseExportInfo, type ExportInfo } from "./export-info.ts";
import {
  GREETING_MAGIC_HIGH,
  GREETING_MAGIC_LOW,
  HandshakeFlag,
  Info,
  Option,
  OPTION_HEADER_BYTES,
  OPTION_MAGIC_HIGH,
  OPTION_MAGIC_LOW,
  OPTION_REPLY_MAGIC_HIGH,
  OPTION_REPLY_MAGIC_LOW,
  OptionReply,
} from "../../export/nbd/protocol.ts";

/** More than any reply to our two options needs. */
const MAX_REPLY_BYTES = 64 * 1024;
const MAX_REPLIES = 100;

/** The bytes of a connection in order. Both reject when it is gone. */
export interface HandshakeStream {
  read(length: number): Promise<Buffer>;
  write(bytes: Buffer): void;
}

/** The server knows our export and won't let us in: it has been removed, or takes no writers. */
export class RefusedError extends UllageError {
  constructor(reason: string) {
    super("nbd-refused", reason);
  }
}

/**
 * The client's side of fixed newstyle negotiation ("Handshake"): structured replies, then GO. When it resolves, the next
 * byte is of transmission.
 * @throws RefusedError when the server answers GO with an error; UllageError `nbd-handshake` on anything unexpected
 */
export async function handshake(stream: HandshakeStream, exportName: string): Promise<ExportInfo> {
  const greeting = await stream.read(18);
  const magic = [0, 4, 8, 12].map((at) => greeting.readUInt32BE(at));
  const expected = [GREETING_MAGIC_HIGH, GREETING_MAGIC_LOW, OPTION_MAGIC_HIGH, OPTION_MAGIC_LOW];
  if (magic.some((word, index) => word !== expected[index])) throw unexpected("it greets like no NBD server");
  const flags = HandshakeFlag.fixedNewstyle | HandshakeFlag.noZeroes;
  if ((greeting.readUInt16BE(16) & flags) !== flags) throw unexpected("it does not speak fixed newstyle");
  const reply = Buffer.alloc(4);
  reply.writeUInt32BE(flags);
  stream.write(reply);

  stream.write(optionRequest(Option.structuredReply, Buffer.alloc(0)));
  const structured = await readOptionReply(stream, Option.structuredReply);
  if (structured.type !== OptionReply.ack) throw unexpected(`no structured replies: ${reasonOf(structured)}`);

  stream.write(optionRequest(Option.go, goData(exportName)));
  const infos: Buffer[] = [];
  for (let count = 0; count < MAX_REPLIES; count++) {
    const { type, data } = await readOptionReply(stream, Option.go);
    if (type === OptionReply.ack) return parseExportInfo(infos);
    if (type !== OptionReply.info) throw new RefusedError(reasonOf({ type, data }));
    infos.push(data);
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
  return data.length > 0 ? data.toString("utf8") : `option reply 0x${type.toString(16)}`;
}

function optionRequest(option: number, data: Buffer): Buffer {
  const header = Buffer.alloc(OPTION_HEADER_BYTES);
  header.writeUInt32BE(OPTION_MAGIC_HIGH, 0);
  header.writeUInt32BE(OPTION_MAGIC_LOW, 4);
  header.writeUInt32BE(option, 8);
  header.writeUInt32BE(data.length, 12);
  return Buffer.concat([header, data]);
}

/** Name, and the one piece of information that is not sent unasked. */
function goData(exportName: string): Buffer {
  const name = Buffer.from(exportName, "utf8");
  const data = Buffer.alloc(4 + name.length + 4);
  data.writeUInt32BE(name.length, 0);
  name.copy(data, 4);
  data.writeUInt16BE(1, 4 + name.length);
  data.writeUInt16BE(Info.lineage, 6 + name.length);
  return data;
}

function unexpected(what: string): UllageError {
  return new UllageError("nbd-handshake", `the NBD server can't be used: ${what}`);
}
