import { describeError, UllageError } from "../../base/errors.ts";
import type { Attachment, BlockDevice, Client, ExportDirectory, ExportLookup } from "../block-device.ts";
import type { HandshakeChannel } from "./handshake-channel.ts";
import {
  MAX_OPTION_BYTES,
  MAX_OPTIONS,
  MAX_PAYLOAD_BYTES,
  MAX_SKIPPED_BYTES,
  MAX_STRING_BYTES,
  MIN_BLOCK_BYTES,
  PREFERRED_BLOCK_BYTES,
} from "./limits.ts";
import { listMetaContexts, type MetaContext, selectMetaContexts } from "./meta-context.ts";
import { parseInfoRequest, parseMetaRequest } from "./option-data.ts";
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
  TransmissionFlag,
} from "../../nbd/protocol.ts";
import type { TlsMode } from "./tls.ts";

/** What transmission starts with. */
export interface Negotiated {
  name: string;
  device: BlockDevice;
  attachment: Attachment;
  readOnly: boolean;
  structured: boolean;
  contexts: MetaContext[];
}

export interface NegotiationOptions {
  exports: ExportDirectory;
  tlsMode: TlsMode;
  /** Refuse every option with this reason; undefined: serve. */
  refusal: string | undefined;
  /** The connection as the device is to know it. */
  client(writable: boolean): Client;
}

interface DeviceLookup {
  name: string;
  device: BlockDevice;
  readOnly: boolean;
}

/**
 * Fixed newstyle negotiation ("Handshake"), from the greeting to the option that starts transmission.
 *
 * State between options: whether structured replies were agreed on, and the metadata contexts with the export name they
 * were chosen for. STARTTLS forgets all of it, so that nothing said in the clear counts afterwards.
 */
export class Negotiation {
  readonly #channel: HandshakeChannel;
  readonly #options: NegotiationOptions;
  #noZeroes = false;
  #structured = false;
  #contexts: MetaContext[] = [];
  #contextsFor = "";
  #skipped = 0;

  constructor(channel: HandshakeChannel, options: NegotiationOptions) {
    this.#channel = channel;
    this.#options = options;
  }

  /** @returns undefined when the client said goodbye; rejects when it broke the protocol or is gone */
  async run(): Promise<Negotiated | undefined> {
    const greeting = Buffer.alloc(18);
    greeting.writeUInt32BE(GREETING_MAGIC_HIGH, 0);
    greeting.writeUInt32BE(GREETING_MAGIC_LOW, 4);
    greeting.writeUInt32BE(OPTION_MAGIC_HIGH, 8);
    greeting.writeUInt32BE(OPTION_MAGIC_LOW, 12);
    greeting.writeUInt16BE(HandshakeFlag.fixedNewstyle | HandshakeFlag.noZeroes, 16);
    await this.#channel.write(greeting);
    const flags = (await this.#channel.read(4)).readUInt32BE(0);
    if ((flags & ~(HandshakeFlag.fixedNewstyle | HandshakeFlag.noZeroes)) !== 0) {
      throw violation(`unknown client flags 0x${flags.toString(16)}`);
    }
    this.#noZeroes = (flags & HandshakeFlag.noZeroes) !== 0;
    const fixed = (flags & HandshakeFlag.fixedNewstyle) !== 0;
    for (let count = 0; count < MAX_OPTIONS; count++) {
      const header = await this.#channel.read(OPTION_HEADER_BYTES);
      if (header.readUInt32BE(0) !== OPTION_MAGIC_HIGH || header.readUInt32BE(4) !== OPTION_MAGIC_LOW) {
        throw violation("an option without the option magic");
      }
      const option = header.readUInt32BE(8);
      const length = header.readUInt32BE(12);
      // A client that did not ask for fixed newstyle understands no option replies.
      if (!fixed && option !== Option.exportName) throw violation(`option ${option} without fixed newstyle`);
      const data = await this.#data(length);
      if (option === Option.abort) {
        await this.#reply(option, OptionReply.ack);
        return undefined;
      }
      const result =
        data === undefined
          ? await this.#refuse(
              option,
              OptionReply.tooBig,
              `${length} bytes of option data, at most ${MAX_OPTION_BYTES}`,
            )
          : await this.#option(option, data);
      if (result !== undefined) return result;
    }
    throw violation(`more than ${MAX_OPTIONS} options`);
  }

  /** The data of an option; undefined when there was too much of it, which is skipped then. */
  async #data(length: number): Promise<Buffer | undefined> {
    if (length <= MAX_OPTION_BYTES) return this.#channel.read(length);
    this.#skipped += length;
    if (this.#skipped > MAX_SKIPPED_BYTES) throw violation(`an option of ${length} bytes`);
    for (let left = length; left > 0; left -= MAX_OPTION_BYTES) {
      await this.#channel.read(Math.min(left, MAX_OPTION_BYTES));
    }
    return undefined;
  }

  async #option(option: number, data: Buffer): Promise<Negotiated | undefined> {
    const { tlsMode, refusal } = this.#options;
    if (refusal !== undefined) return this.#refuse(option, OptionReply.policy, refusal);
    if (tlsMode === "require" && !this.#channel.secure && option !== Option.startTls) {
      return this.#refuse(option, OptionReply.tlsRequired, "this server requires TLS");
    }
    switch (option) {
      case Option.exportName:
        return this.#exportName(data.toString("utf8"));
      case Option.list:
        return this.#list(data);
      case Option.startTls:
        return this.#startTls(data);
      case Option.info:
      case Option.go:
        return this.#infoOrGo(option, data);
      case Option.structuredReply:
        if (data.length > 0) return this.#refuse(option, OptionReply.invalid, "the option takes no data");
        this.#structured = true;
        return this.#reply(option, OptionReply.ack);
      case Option.listMetaContext:
      case Option.setMetaContext:
        return this.#metaContext(option, data);
      default:
        return this.#refuse(option, OptionReply.unsupported, `option ${option} is not supported`);
    }
  }

  async #exportName(name: string): Promise<Negotiated> {
    const found = await this.#lookup(name);
    if (found.kind === "none") throw violation(`no export "${name}": ${found.reason}`);
    const negotiated = await this.#enter(name, found);
    const reply = Buffer.alloc(this.#noZeroes ? 10 : 134);
    reply.writeBigUInt64BE(BigInt(found.device.size), 0);
    reply.writeUInt16BE(this.#transmissionFlags(negotiated.readOnly), 8);
    await this.#handOver(negotiated, reply);
    return negotiated;
  }

  async #list(data: Buffer): Promise<undefined> {
    if (data.length > 0) return this.#refuse(Option.list, OptionReply.invalid, "the option takes no data");
    const replies = this.#options.exports.list().map(({ name, description }) => {
      const bytes = Buffer.from(name, "utf8");
      const length = Buffer.alloc(4);
      length.writeUInt32BE(bytes.length);
      return optionReply(Option.list, OptionReply.server, Buffer.concat([length, bytes, text(description ?? "")]));
    });
    await this.#channel.write(Buffer.concat([...replies, optionReply(Option.list, OptionReply.ack)]));
    return undefined;
  }

  async #startTls(data: Buffer): Promise<undefined> {
    const option = Option.startTls;
    if (this.#options.tlsMode === "off") return this.#refuse(option, OptionReply.policy, "this server has no TLS");
    if (this.#channel.secure) return this.#refuse(option, OptionReply.invalid, "TLS is on already");
    if (data.length > 0) return this.#refuse(option, OptionReply.invalid, "the option takes no data");
    // What came in the clear behind the option must not be taken for something said under TLS.
    if (this.#channel.hasUnread) throw violation("bytes behind STARTTLS");
    await this.#reply(option, OptionReply.ack);
    await this.#channel.startTls();
    this.#structured = false;
    this.#contexts = [];
    return undefined;
  }

  async #infoOrGo(option: number, data: Buffer): Promise<Negotiated | undefined> {
    const request = parseInfoRequest(data);
    if (request === undefined) return this.#refuse(option, OptionReply.invalid, "malformed option data");
    const found = await this.#lookup(request.name);
    if (found.kind === "none") return this.#refuse(option, OptionReply.unknown, found.reason);
    let negotiated: Negotiated | undefined;
    if (option === Option.go) {
      try {
        negotiated = await this.#enter(request.name, found);
      } catch (error) {
        return this.#refuse(option, OptionReply.policy, describeError(error));
      }
    }
    const replies = [this.#exportInfo(option, found)];
    if (request.infos.includes(Info.name)) replies.push(this.#info(option, Info.name, text(found.name)));
    if (request.infos.includes(Info.description)) {
      const description = this.#options.exports.list().find(({ name }) => name === found.name)?.description;
      if (description !== undefined) replies.push(this.#info(option, Info.description, text(description)));
    }
    if (request.infos.includes(Info.blockSize)) {
      const sizes = Buffer.alloc(12);
      sizes.writeUInt32BE(MIN_BLOCK_BYTES, 0);
      sizes.writeUInt32BE(PREFERRED_BLOCK_BYTES, 4);
      sizes.writeUInt32BE(MAX_PAYLOAD_BYTES, 8);
      replies.push(this.#info(option, Info.blockSize, sizes));
    }
    if (request.infos.includes(Info.lineage)) {
      // In the reply to GO it is that of the very device that transmission is about: no restart can come in between.
      replies.push(this.#info(option, Info.lineage, Buffer.from(found.device.lineage, "hex")));
    }
    replies.push(optionReply(option, OptionReply.ack));
    if (negotiated === undefined) await this.#channel.write(Buffer.concat(replies));
    else await this.#handOver(negotiated, Buffer.concat(replies));
    return negotiated;
  }

  async #metaContext(option: number, data: Buffer): Promise<undefined> {
    if (option === Option.setMetaContext) this.#contexts = [];
    if (!this.#structured) return this.#refuse(option, OptionReply.invalid, "structured replies come first");
    const request = parseMetaRequest(data);
    if (request === undefined) return this.#refuse(option, OptionReply.invalid, "malformed option data");
    const found = await this.#lookup(request.name);
    if (found.kind === "none") return this.#refuse(option, OptionReply.unknown, found.reason);
    const set = option === Option.setMetaContext;
    let contexts: { id: number; name: string }[];
    if (set) {
      this.#contexts = contexts = await selectMetaContexts(request.queries, found.snapshots);
      this.#contextsFor = request.name;
    } else {
      contexts = listMetaContexts(request.queries, found.snapshots?.names() ?? []).map((name) => ({ id: 0, name }));
    }
    for (const { id, name } of contexts) {
      const identifier = Buffer.alloc(4);
      identifier.writeUInt32BE(id);
      await this.#reply(option, OptionReply.metaContext, Buffer.concat([identifier, text(name)]));
    }
    return this.#reply(option, OptionReply.ack);
  }

  async #lookup(name: string): Promise<ExportLookup> {
    try {
      return await this.#options.exports.lookup(name);
    } catch (error) {
      return { kind: "none", reason: `export "${name}" is not available: ${describeError(error)}` };
    }
  }

  async #enter(name: string, found: DeviceLookup): Promise<Negotiated> {
    const readOnly = found.readOnly || found.device.readOnly;
    const attachment = await found.device.attach(this.#options.client(!readOnly));
    return {
      name: found.name,
      device: found.device,
      attachment,
      readOnly,
      structured: this.#structured,
      // "the final time it was sent, it referred to the same export name"
      contexts: name === this.#contextsFor ? this.#contexts : [],
    };
  }

  /** The reply that starts transmission. A client that left while it was attached must not stay attached. */
  async #handOver(negotiated: Negotiated, reply: Buffer): Promise<void> {
    try {
      await this.#channel.write(reply);
    } catch (error) {
      negotiated.attachment.broken();
      negotiated.attachment.release(false);
      throw error;
    }
  }

  #transmissionFlags(readOnly: boolean): number {
    const { hasFlags, flush, fua, multiConn, cache, df, trim, writeZeroes, fastZero } = TransmissionFlag;
    const flags = hasFlags | flush | fua | multiConn | cache | (this.#structured ? df : 0);
    return flags | (readOnly ? TransmissionFlag.readOnly : trim | writeZeroes | fastZero);
  }

  #exportInfo(option: number, found: DeviceLookup): Buffer {
    const info = Buffer.alloc(10);
    info.writeBigUInt64BE(BigInt(found.device.size), 0);
    info.writeUInt16BE(this.#transmissionFlags(found.readOnly || found.device.readOnly), 8);
    return this.#info(option, Info.export, info);
  }

  #info(option: number, type: number, payload: Buffer): Buffer {
    const kind = Buffer.alloc(2);
    kind.writeUInt16BE(type);
    return optionReply(option, OptionReply.info, Buffer.concat([kind, payload]));
  }

  async #reply(option: number, type: number, data?: Buffer): Promise<undefined> {
    await this.#channel.write(optionReply(option, type, data));
    return undefined;
  }

  async #refuse(option: number, type: number, message: string): Promise<undefined> {
    // NBD_OPT_EXPORT_NAME has no error reply: the session ends.
    if (option === Option.exportName) throw violation(message);
    return this.#reply(option, type, text(message));
  }
}

function optionReply(option: number, type: number, data: Buffer = Buffer.alloc(0)): Buffer {
  const header = Buffer.alloc(20);
  header.writeUInt32BE(OPTION_REPLY_MAGIC_HIGH, 0);
  header.writeUInt32BE(OPTION_REPLY_MAGIC_LOW, 4);
  header.writeUInt32BE(option, 8);
  header.writeUInt32BE(type, 12);
  header.writeUInt32BE(data.length, 16);
  return Buffer.concat([header, data]);
}

/** "Conventions": a string is at most 4096 bytes. */
function text(value: string): Buffer {
  const bytes = Buffer.from(value, "utf8");
  if (bytes.length <= MAX_STRING_BYTES) return bytes;
  return Buffer.from(
    bytes
      .subarray(0, MAX_STRING_BYTES - 3)
      .toString("utf8")
      .replace(/�$/u, ""),
    "utf8",
  );
}

function violation(message: string): UllageError {
  return new UllageError("nbd-protocol", message);
}
