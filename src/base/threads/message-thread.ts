import type { MessageCommand, MessageEvent, MessageSetup } from "./message-sockets.ts";
import { type Polled, POLLERR, POLLHUP, POLLIN, POLLOUT, pollSetup, runPollLoop, tellMain } from "./poll-loop.ts";
import { addressOf, closeDescriptor, EAGAIN, EINTR, errno, errnoName, receiveMessage, sendMessage } from "../posix.ts";

/*
 * One connection at a time is read up to the end of one message, never beyond: descriptors ride on the first byte of a
 * header, and a read across the boundary would give them to the wrong message. Layouts: `struct msghdr`, `iovec` and
 * `cmsghdr` of Linux LP64.
 */

const { framing, limits } = pollSetup() as MessageSetup;
const { headerBytes, bodyLengthAt, maxBodyBytes, maxDescriptors } = framing;

const SOL_SOCKET = 1;
const SCM_RIGHTS = 1;
const MSG_CTRUNC = 8;
const CMSG_HEADER_BYTES = 16;
const controlBytes = CMSG_HEADER_BYTES + 8 * Math.ceil((4 * maxDescriptors) / 8);

const data = Buffer.allocUnsafeSlow(headerBytes + maxBodyBytes);
const dataAddress = addressOf(data);
const control = Buffer.allocUnsafeSlow(controlBytes);
const iovec = Buffer.allocUnsafeSlow(16);
const message = Buffer.allocUnsafeSlow(56).fill(0);
const messageAddress = addressOf(message);
message.writeBigUInt64LE(BigInt(addressOf(iovec)), 16);
message.writeBigUInt64LE(1n, 24);
message.writeBigUInt64LE(BigInt(addressOf(control)), 32);

interface Outgoing {
  bytes: Uint8Array;
  /** sent so far */
  sent: number;
  descriptors: number[];
}

interface Connection {
  readonly socket: number;
  readonly fd: number;
  /** the message that is coming in */
  readonly incoming: Buffer;
  received: number;
  descriptors: number[];
  unanswered: number;
  readonly outgoing: Outgoing[];
}

const connections: Connection[] = [];
/** `connections`, as the last wait saw them. */
let waited: Connection[] = [];

function tell(event: MessageEvent): void {
  tellMain(event);
}

function end(connection: Connection, reason: string): void {
  const index = connections.indexOf(connection);
  if (index < 0) return;
  connections.splice(index, 1);
  closeDescriptor(connection.fd);
  connection.descriptors.forEach(closeDescriptor);
  for (const { descriptors } of connection.outgoing) descriptors.forEach(closeDescriptor);
  tell({ kind: "closed", socket: connection.socket, reason });
}

function aim(at: number, length: number, controlLength: number): void {
  iovec.writeBigUInt64LE(BigInt(dataAddress + at), 0);
  iovec.writeBigUInt64LE(BigInt(length), 8);
  message.writeBigUInt64LE(BigInt(controlLength), 40);
  message.writeInt32LE(0, 48);
}

// ---- receiving -----------------------------------------------------------------------------------------------------

/** How many bytes the message that is coming in will have, as far as that is known. */
function expected(connection: Connection): number {
  if (connection.received < headerBytes) return headerBytes;
  return headerBytes + connection.incoming.readUInt32LE(bodyLengthAt);
}

/** One message at most; whether there is another one the next wait tells. */
function receive(connection: Connection): void {
  for (;;) {
    const missing = expected(connection) - connection.received;
    aim(0, missing, controlBytes);
    const got = receiveMessage(connection.fd, messageAddress);
    if (got < 0) {
      const code = errno();
      if (code === EINTR) continue;
      if (code !== EAGAIN) end(connection, errnoName(code));
      return;
    }
    if (!takeDescriptors(connection)) return;
    if (got === 0) {
      end(connection, connection.received === 0 ? "the peer closed it" : "the peer closed it inside a message");
      return;
    }
    data.copy(connection.incoming, connection.received, 0, got);
    connection.received += got;
    if (connection.received < expected(connection)) {
      if (connection.received < headerBytes) continue;
      if (expected(connection) <= headerBytes + maxBodyBytes) continue;
      end(connection, `a message of more than ${maxBodyBytes} bytes`);
      return;
    }
    handOver(connection);
    return;
  }
}

/** @returns false when the connection had to be ended */
function takeDescriptors(connection: Connection): boolean {
  const length = Number(message.readBigUInt64LE(40));
  for (let at = 0; at + CMSG_HEADER_BYTES <= length;) {
    const bytes = Number(control.readBigUInt64LE(at));
    if (bytes < CMSG_HEADER_BYTES) break;
    if (control.readInt32LE(at + 8) === SOL_SOCKET && control.readInt32LE(at + 12) === SCM_RIGHTS) {
      for (let each = at + CMSG_HEADER_BYTES; each + 4 <= at + bytes; each += 4) {
        connection.descriptors.push(control.readInt32LE(each));
      }
    }
    at += 8 * Math.ceil(bytes / 8);
  }
  const tooMany = (message.readInt32LE(48) & MSG_CTRUNC) !== 0 || connection.descriptors.length > maxDescriptors;
  if (tooMany) end(connection, `more than ${maxDescriptors} descriptors with one message`);
  else if (length > 0 && connection.received >= headerBytes) end(connection, "descriptors inside a message");
  else return true;
  return false;
}

function handOver(connection: Connection): void {
  const bytes = new Uint8Array(connection.incoming.subarray(0, connection.received)); // of its own: it is posted
  const { descriptors } = connection;
  connection.received = 0;
  connection.descriptors = [];
  connection.unanswered++;
  tell({ kind: "message", socket: connection.socket, bytes, descriptors });
}

// ---- sending -------------------------------------------------------------------------------------------------------

function send(connection: Connection): void {
  for (let next = connection.outgoing[0]; next !== undefined; next = connection.outgoing[0]) {
    data.set(next.bytes.subarray(next.sent), 0);
    aim(0, next.bytes.length - next.sent, attach(next.descriptors));
    const sent = sendMessage(connection.fd, messageAddress);
    if (sent < 0) {
      const code = errno();
      if (code === EINTR) continue;
      if (code !== EAGAIN) end(connection, errnoName(code));
      return;
    }
    next.descriptors.forEach(closeDescriptor);
    next.descriptors = [];
    next.sent += sent;
    if (next.sent === next.bytes.length) connection.outgoing.shift();
  }
}

/** @returns bytes of control data */
function attach(descriptors: readonly number[]): number {
  if (descriptors.length === 0) return 0;
  const bytes = CMSG_HEADER_BYTES + 4 * descriptors.length;
  control.writeBigUInt64LE(BigInt(bytes), 0);
  control.writeInt32LE(SOL_SOCKET, 8);
  control.writeInt32LE(SCM_RIGHTS, 12);
  descriptors.forEach((fd, index) => control.writeInt32LE(fd, CMSG_HEADER_BYTES + 4 * index));
  return 8 * Math.ceil(bytes / 8);
}

// ---- the thread ----------------------------------------------------------------------------------------------------

function eventsOf(connection: Connection): number {
  const reading = connection.unanswered < limits.unanswered ? POLLIN : 0;
  return reading | (connection.outgoing.length > 0 ? POLLOUT : 0);
}

runPollLoop<MessageCommand>({
  command(command) {
    if (command.kind === "adopt") {
      const incoming = Buffer.allocUnsafeSlow(headerBytes + maxBodyBytes);
      const { socket, fd } = command;
      connections.push({ socket, fd, incoming, received: 0, descriptors: [], unanswered: 0, outgoing: [] });
      return;
    }
    const connection = connections.find(({ socket }) => socket === command.socket);
    if (command.kind === "send") {
      const { bytes, descriptors } = command;
      if (connection === undefined) {
        descriptors.forEach(closeDescriptor);
        return;
      }
      connection.outgoing.push({ bytes, sent: 0, descriptors });
      send(connection);
      if (connection.outgoing.length > limits.queued) end(connection, "the peer does not read what it is sent");
    } else if (connection !== undefined && command.kind === "answered") {
      connection.unanswered--;
    } else if (connection !== undefined) {
      end(connection, "closed");
    }
  },
  polled(): Polled[] {
    waited = connections.slice();
    return waited.map((connection) => ({ fd: connection.fd, events: eventsOf(connection) }));
  },
  timeoutMs: () => -1,
  ready(index, events) {
    const connection = waited[index];
    send(connection);
    if (!connections.includes(connection)) return;
    if ((eventsOf(connection) & POLLIN) !== 0) receive(connection);
    else if ((events & (POLLERR | POLLHUP)) !== 0) end(connection, "the peer closed it");
  },
  end() {
    for (const connection of connections.slice()) end(connection, "closed");
  },
});
