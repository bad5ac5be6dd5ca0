/**
 * The smallest NBD client that can measure latency: one request at a time, on a connection that was opened before the
 * clock starts. https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
 */
import { type Socket, connect } from "node:net";
import { once } from "node:events";

const optionMagic = 0x49484156454f5054n; // IHAVEOPT
const optionGo = 7;
const replyAck = 1;
const requestMagic = 0x25609513;
const simpleReplyMagic = 0x67446698;
const commandRead = 0;
const commandWrite = 1;
const commandFlush = 3;

export class NbdClient {
  readonly #socket: Socket;
  readonly #input: AsyncIterator<Buffer>;
  #have: Buffer = Buffer.alloc(0);

  private constructor(socket: Socket) {
    this.#socket = socket;
    this.#input = socket[Symbol.asyncIterator]() as AsyncIterator<Buffer>;
  }

  /** Connects and shakes hands, up to where an export is chosen. */
  static async connect(socketPath: string): Promise<NbdClient> {
    const socket = connect(socketPath);
    await once(socket, "connect");
    const client = new NbdClient(socket);
    await client.#take(18); // NBDMAGIC IHAVEOPT flags
    socket.write(Buffer.from([0, 0, 0, 3])); // FIXED_NEWSTYLE, NO_ZEROES
    return client;
  }

  /** Chooses the export. @throws Error when the server does not have it */
  async go(name: string): Promise<void> {
    const option = Buffer.alloc(16 + 4 + Buffer.byteLength(name) + 2);
    option.writeBigUInt64BE(optionMagic, 0);
    option.writeUInt32BE(optionGo, 8);
    option.writeUInt32BE(option.length - 16, 12);
    option.writeUInt32BE(Buffer.byteLength(name), 16);
    option.write(name, 20);
    this.#socket.write(option);
    for (;;) {
      const header = await this.#take(20);
      const type = header.readUInt32BE(12);
      const text = await this.#take(header.readUInt32BE(16));
      if (type === replyAck) return;
      if (type >= 2 ** 31) throw new Error(`export '${name}': NBD error reply ${type - 2 ** 31}: ${text.toString()}`);
    }
  }

  async read(offset: number, length: number): Promise<Buffer> {
    await this.#request(commandRead, offset, length, []);
    return this.#take(length);
  }

  async write(offset: number, bytes: Buffer): Promise<void> {
    await this.#request(commandWrite, offset, bytes.length, [bytes]);
  }

  async flush(): Promise<void> {
    await this.#request(commandFlush, 0, 0, []);
  }

  /** @returns behind the header of the reply */
  async #request(command: number, offset: number, length: number, payload: readonly Buffer[]): Promise<void> {
    const header = Buffer.alloc(28);
    header.writeUInt32BE(requestMagic, 0);
    header.writeUInt16BE(command, 6);
    header.writeBigUInt64BE(BigInt(offset), 16);
    header.writeUInt32BE(length, 24);
    this.#socket.write(Buffer.concat([header, ...payload]));
    const reply = await this.#take(16);
    if (reply.readUInt32BE(0) !== simpleReplyMagic) throw new Error(`not a simple reply: ${reply.toString("hex")}`);
    if (reply.readUInt32BE(4) === 0) return;
    throw new Error(`command ${command} of ${length} at ${offset}: errno ${reply.readUInt32BE(4)}`);
  }

  close(): void {
    this.#socket.destroy();
  }

  async #take(length: number): Promise<Buffer> {
    const pieces = [this.#have];
    let have = this.#have.length;
    while (have < length) {
      const next = await this.#input.next();
      if (next.done === true) throw new Error("the server closed the connection");
      pieces.push(next.value);
      have += next.value.length;
    }
    const all = pieces.length === 1 ? pieces[0] : Buffer.concat(pieces);
    this.#have = all.subarray(length);
    return all.subarray(0, length);
  }
}
