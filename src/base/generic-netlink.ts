import { close, read, write } from "node:fs";
import { promisify } from "node:util";
import { IoError } from "./errors.ts";
import { errno, errnoName, genericNetlinkSocket } from "./posix.ts";

/*
 * Generic netlink: requests to parts of the kernel ("families") that are found by name. Integers are little-endian, as
 * they are on every machine that Ullage runs on. Layouts: <linux/netlink.h>, <linux/genetlink.h>.
 */

const NETLINK_HEADER_BYTES = 16;
const GENERIC_HEADER_BYTES = 4;
const ATTRIBUTE_HEADER_BYTES = 4;
const NLM_F_REQUEST = 1;
const NLM_F_ACK = 4;
const NLMSG_ERROR = 2;
const NLA_F_NESTED = 0x8000;
const NLA_TYPE_MASK = 0x3fff;
/** More than any reply that is asked for here takes. */
const REPLY_BYTES = 16 * 1024;

const controller = { family: 16, getFamily: 3, familyId: 1, familyName: 2 } as const;

/** The attributes of a reply, by type. */
export type Attributes = ReadonlyMap<number, Buffer>;

export function numberAttribute(type: number, value: number): Buffer {
  const payload = Buffer.alloc(4);
  payload.writeUInt32LE(value);
  return attribute(type, payload);
}

/** A number of 64 bits. */
export function longAttribute(type: number, value: number): Buffer {
  const payload = Buffer.alloc(8);
  payload.writeBigUInt64LE(BigInt(value));
  return attribute(type, payload);
}

export function textAttribute(type: number, value: string): Buffer {
  return attribute(type, Buffer.from(`${value}\0`, "utf8"));
}

export function nestedAttribute(type: number, ...attributes: Buffer[]): Buffer {
  return attribute(type | NLA_F_NESTED, Buffer.concat(attributes));
}

/** @returns undefined when the kernel has no such family, or none in this network namespace */
export async function findFamily(name: string): Promise<number | undefined> {
  try {
    const reply = await netlinkRequest(controller.family, controller.getFamily, [
      textAttribute(controller.familyName, name),
    ]);
    return reply.get(controller.familyId)?.readUInt16LE(0);
  } catch (error) {
    if (error instanceof IoError) return undefined;
    throw error;
  }
}

/**
 * Sends one command and waits until the kernel has done it, in the thread pool.
 * @returns what it answered, empty when it only says that it is done @throws IoError with the kernel's errno
 */
export async function netlinkRequest(
  family: number,
  command: number,
  attributes: readonly Buffer[],
): Promise<Attributes> {
  const socket = genericNetlinkSocket();
  if (socket < 0) throw new IoError(errnoName(errno()), `no netlink socket: ${errnoName(errno())}`);
  try {
    await promisify(write)(socket, request(family, command, attributes));
    return await answer(socket);
  } finally {
    await promisify(close)(socket);
  }
}

/** Reads up to the acknowledgement, which comes last. */
async function answer(socket: number): Promise<Attributes> {
  const buffer = Buffer.alloc(REPLY_BYTES);
  let attributes: Attributes = new Map();
  for (;;) {
    const { bytesRead } = await promisify(read)(socket, buffer, 0, buffer.length, null);
    for (let at = 0; at + NETLINK_HEADER_BYTES <= bytesRead;) {
      const length = buffer.readUInt32LE(at);
      const body = buffer.subarray(at + NETLINK_HEADER_BYTES, at + length);
      if (buffer.readUInt16LE(at + 4) !== NLMSG_ERROR) attributes = parse(body.subarray(GENERIC_HEADER_BYTES));
      else if (body.readInt32LE(0) === 0) return attributes;
      else throw refusal(-body.readInt32LE(0));
      at += padded(Math.max(length, NETLINK_HEADER_BYTES));
    }
  }
}

function refusal(code: number): IoError {
  return new IoError(errnoName(code), `the kernel answers ${errnoName(code)}`);
}

function request(family: number, command: number, attributes: readonly Buffer[]): Buffer {
  const header = Buffer.alloc(NETLINK_HEADER_BYTES + GENERIC_HEADER_BYTES);
  const message = Buffer.concat([header, ...attributes]);
  message.writeUInt32LE(message.length, 0);
  message.writeUInt16LE(family, 4);
  message.writeUInt16LE(NLM_F_REQUEST | NLM_F_ACK, 6);
  message.writeUInt8(command, NETLINK_HEADER_BYTES);
  message.writeUInt8(1, NETLINK_HEADER_BYTES + 1); // version
  return message;
}

function attribute(type: number, payload: Buffer): Buffer {
  const bytes = Buffer.alloc(padded(ATTRIBUTE_HEADER_BYTES + payload.length));
  bytes.writeUInt16LE(ATTRIBUTE_HEADER_BYTES + payload.length, 0);
  bytes.writeUInt16LE(type, 2);
  payload.copy(bytes, ATTRIBUTE_HEADER_BYTES);
  return bytes;
}

function parse(bytes: Buffer): Map<number, Buffer> {
  const attributes = new Map<number, Buffer>();
  for (let at = 0; at + ATTRIBUTE_HEADER_BYTES <= bytes.length;) {
    const length = bytes.readUInt16LE(at);
    if (length < ATTRIBUTE_HEADER_BYTES) break;
    const type = bytes.readUInt16LE(at + 2) & NLA_TYPE_MASK;
    attributes.set(type, Buffer.from(bytes.subarray(at + ATTRIBUTE_HEADER_BYTES, at + length)));
    at += padded(length);
  }
  return attributes;
}

/** Messages and attributes begin at multiples of four bytes. */
function padded(length: number): number {
  return (length + 3) & ~3;
}
