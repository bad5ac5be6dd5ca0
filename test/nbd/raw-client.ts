import net from "node:net";

const OPTION_MAGIC = Buffer.from("IHAVEOPT", "latin1");

export interface OptionReplyMessage {
  option: number;
  type: number;
  data: Buffer;
}

export interface ReplyChunk {
  cookie: bigint;
  /** Of a simple reply, or of an error chunk; 0: success. */
  error: number;
  structured: boolean;
  type: number;
  done: boolean;
  /** What followed the header. */
  payload: Buffer;
}

/** An NBD client that sends exactly what it is told to, right or wrong. */
export class RawClient {
  readonly socket: net.Socket;
  #chunks: Buffer[] = [];
  #length = 0;
  #waiters: (() => void)[] = [];
  ended = false;

  private constructor(socket: net.Socket) {
    this.socket = socket;
    socket.on("data", (bytes: Buffer) => {
      this.#chunks.push(bytes);
      this.#length += bytes.length;
      this.#wakeAll();
    });
    const end = (): void => {
      this.ended = true;
      this.#wakeAll();
    };
    socket.on("end", end);
    socket.on("close", end);
    socket.on("error", end);
  }

  /** @param target a unix socket's path or a TCP port of this machine */
  static async connect(target: string | number): Promise<RawClient> {
    const socket = typeof target === "number" ? net.connect(target, "127.0.0.1") : net.connect(target);
    await new Promise<void>((resolve, reject) => {
      socket.once("connect", () => resolve());
      socket.once("error", reject);
    });
    return new RawClient(socket);
  }

  /** Connects, and enters transmission on an export. */
  static async open(
    target: string | number,
    options: { name?: string; structured?: boolean; contexts?: string[] } = {},
  ): Promise<RawClient> {
    const client = await RawClient.connect(target);
    await client.greet();
    const name = options.name ?? "disk";
    if (options.structured ?? true) await client.expectAck(8);
    if (options.contexts !== undefined) {
      client.option(10, metaData(name, options.contexts));
      await client.optionReplies();
    }
    client.option(7, goData(name));
    const replies = await client.optionReplies();
    if (replies.at(-1)!.type !== 1) throw new Error(`GO refused: ${replies.at(-1)!.data.toString()}`);
    return client;
  }

  write(bytes: Uint8Array): void {
    this.socket.write(bytes);
  }

  /** Exactly `length` bytes; rejects when the server ends the connection before. */
  async read(length: number): Promise<Buffer> {
    while (this.#length < length) {
      if (this.ended) throw new Error(`the server ended the connection: ${this.#length} of ${length} bytes`);
      await new Promise<void>((resolve) => this.#waiters.push(resolve));
    }
    const all = this.#chunks.length === 1 ? this.#chunks[0] : Buffer.concat(this.#chunks);
    const rest = all.subarray(length);
    this.#chunks = rest.length > 0 ? [rest] : [];
    this.#length = rest.length;
    return all.subarray(0, length);
  }

  /** Resolves when the server has ended the connection. */
  async end(): Promise<void> {
    while (!this.ended) await new Promise<void>((resolve) => this.#waiters.push(resolve));
  }

  destroy(): void {
    this.socket.destroy();
  }

  /** Takes the greeting and answers with client flags. */
  async greet(flags = 3): Promise<Buffer> {
    const greeting = await this.read(18);
    const reply = Buffer.alloc(4);
    reply.writeUInt32BE(flags);
    this.write(reply);
    return greeting;
  }

  option(option: number, data: Buffer = Buffer.alloc(0), announced = data.length): void {
    const header = Buffer.alloc(16);
    OPTION_MAGIC.copy(header);
    header.writeUInt32BE(option, 8);
    header.writeUInt32BE(announced, 12);
    this.write(Buffer.concat([header, data]));
  }

  async optionReply(): Promise<OptionReplyMessage> {
    const header = await this.read(20);
    const data = await this.read(header.readUInt32BE(16));
    return { option: header.readUInt32BE(8), type: header.readUInt32BE(12), data: Buffer.from(data) };
  }

  /** Replies up to the final one: an acknowledgement or an error. */
  async optionReplies(): Promise<OptionReplyMessage[]> {
    const replies: OptionReplyMessage[] = [];
    for (;;) {
      const reply = await this.optionReply();
      replies.push(reply);
      if (reply.type === 1 || reply.type >= 0x80000000) return replies;
    }
  }

  async expectAck(option: number, data?: Buffer): Promise<void> {
    this.option(option, data);
    const reply = await this.optionReply();
    if (reply.type !== 1)
      throw new Error(`option ${option}: reply ${reply.type.toString(16)} ${reply.data.toString()}`);
  }

  request(
    command: number,
    request: { flags?: number; cookie?: bigint; offset?: bigint | number; length?: number; payload?: Uint8Array } = {},
  ): void {
    this.write(requestBytes(command, request));
  }

  /**
   * One reply, or one chunk of a structured reply.
   * @param length of the data behind a successful simple reply, or how to find it by the cookie
   */
  async reply(length: number | ((cookie: bigint) => number) = 0): Promise<ReplyChunk> {
    const magic = (await this.read(4)).readUInt32BE(0);
    if (magic === 0x67446698) {
      const rest = await this.read(12);
      const error = rest.readUInt32BE(0);
      const cookie = rest.readBigUInt64BE(4);
      const payload = Buffer.from(
        error === 0 ? await this.read(typeof length === "number" ? length : length(cookie)) : [],
      );
      return { cookie, error, structured: false, type: 0, done: true, payload };
    }
    if (magic !== 0x668e33ef) throw new Error(`reply magic 0x${magic.toString(16)}`);
    const rest = await this.read(16);
    const type = rest.readUInt16BE(2);
    const cookie = rest.readBigUInt64BE(4);
    const payload = Buffer.from(await this.read(rest.readUInt32BE(12)));
    const error = type >= 0x8000 ? payload.readUInt32BE(0) : 0;
    return { cookie, error, structured: true, type, done: (rest.readUInt16BE(0) & 1) !== 0, payload };
  }

  #wakeAll(): void {
    for (const wake of this.#waiters.splice(0)) wake();
  }
}

export function requestBytes(
  command: number,
  request: { flags?: number; cookie?: bigint; offset?: bigint | number; length?: number; payload?: Uint8Array } = {},
): Buffer {
  const header = Buffer.alloc(28);
  header.writeUInt32BE(0x25609513, 0);
  header.writeUInt16BE(request.flags ?? 0, 4);
  header.writeUInt16BE(command, 6);
  header.writeBigUInt64BE(request.cookie ?? 0n, 8);
  header.writeBigUInt64BE(BigInt(request.offset ?? 0), 16);
  header.writeUInt32BE(request.length ?? request.payload?.length ?? 0, 24);
  return request.payload === undefined ? header : Buffer.concat([header, request.payload]);
}

/** Data of NBD_OPT_GO and NBD_OPT_INFO. */
export function goData(name: string, infos: number[] = []): Buffer {
  const bytes = Buffer.from(name, "utf8");
  const data = Buffer.alloc(6 + bytes.length + 2 * infos.length);
  data.writeUInt32BE(bytes.length, 0);
  bytes.copy(data, 4);
  data.writeUInt16BE(infos.length, 4 + bytes.length);
  infos.forEach((info, index) => data.writeUInt16BE(info, 6 + bytes.length + 2 * index));
  return data;
}

/** Data of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT. */
export function metaData(name: string, queries: string[]): Buffer {
  const count = Buffer.alloc(4);
  count.writeUInt32BE(queries.length);
  return Buffer.concat([text(name), count, ...queries.map(text)]);
}

function text(value: string): Buffer {
  const bytes = Buffer.from(value, "utf8");
  const length = Buffer.alloc(4);
  length.writeUInt32BE(bytes.length);
  return Buffer.concat([length, bytes]);
}
