import { close, existsSync, read, writeSync } from "node:fs";
import { promisify } from "node:util";
import { describeError, UllageError } from "../base/errors.ts";
import {
  findFamily,
  longAttribute,
  nestedAttribute,
  netlinkRequest,
  numberAttribute,
  textAttribute,
} from "../base/generic-netlink.ts";
import { AF_UNIX, blockingStreamSocket, connect, errno, errnoName } from "../base/posix.ts";
import { HandshakeFlag, Option, OPTION_MAGIC_HIGH, OPTION_MAGIC_LOW } from "../export/nbd/protocol.ts";
import { unixSocketAddress } from "../base/socket-address.ts";
import { nbdBackend } from "./block-devices.ts";
import { commandExists, tryCommand } from "./run-command.ts";

/*
 * The kernel's NBD client (drivers/block/nbd.c), driven over netlink (<linux/nbd-netlink.h>). It gets a socket on which the
 * handshake is done already, and keeps it. A device carries the name of who it belongs to, its *backend*, since Linux 5.14.
 *
 * It gets one connection and no time limit: then it never gives a request up, and the helper decides how long one waits.
 * (With two it would after 30 s take the connection for dead.) The other side of that: when the helper is killed, what it
 * had not answered hangs until the device is disconnected.
 */

const Command = { connect: 1, disconnect: 2, reconfigure: 3 } as const;
const Attribute = {
  index: 1,
  sizeBytes: 2,
  blockSizeBytes: 3,
  serverFlags: 5,
  sockets: 7,
  backendIdentifier: 10,
} as const;
const SOCK_ITEM = 1;
const SOCK_FD = 1;
/** As every disk has it that does not say otherwise: partition tables and file systems on images count in it. */
const BLOCK_BYTES = 512;

/** Why the kernel's NBD client can't be used here; undefined: it can. Loads the module if it has to. */
export async function kernelNbdLacks(): Promise<string | undefined> {
  if (process.getuid?.() !== 0) return "it needs root";
  if (!existsSync("/sys/module/nbd") && commandExists("modprobe")) await tryCommand("modprobe", "nbd");
  if ((await findFamily("nbd")) === undefined) return "this kernel, or this container, has no module nbd";
  return existsSync("/dev/nbd0") ? undefined : "there is no /dev/nbd0";
}

/**
 * Makes the NBD export "" behind the socket's path a device of the kernel.
 * @returns its name: `nbd0` @throws UllageError `kernel-nbd-failed`
 */
export async function connectKernel(socketPath: string, backend: string): Promise<string> {
  const socket = blockingStreamSocket(AF_UNIX);
  if (socket < 0) throw failed(`no socket: ${errnoName(errno())}`);
  try {
    if (connect(socket, unixSocketAddress(socketPath)) !== 0) {
      throw failed(`no connection to ${socketPath}: ${errnoName(errno())}`);
    }
    const { size, flags } = await handshake(socket);
    const reply = await command(Command.connect, [
      longAttribute(Attribute.sizeBytes, size),
      longAttribute(Attribute.blockSizeBytes, BLOCK_BYTES),
      longAttribute(Attribute.serverFlags, flags),
      textAttribute(Attribute.backendIdentifier, backend),
      nestedAttribute(Attribute.sockets, nestedAttribute(SOCK_ITEM, numberAttribute(SOCK_FD, socket))),
    ]);
    const index = reply.get(Attribute.index)!.readUInt32LE(0);
    const name = `nbd${index}`;
    if (nbdBackend(name) === backend && existsSync(`/dev/${name}`)) return name;
    await disconnectKernel(name);
    throw failed(
      existsSync(`/dev/${name}`) ? "it keeps no backend: Linux 5.14 or newer is needed" : `/dev/${name} is missing`,
    );
  } finally {
    await promisify(close)(socket); // the kernel has its own hold on it
  }
}

/** The device has `size` bytes from now on, whoever uses it. @throws UllageError `kernel-nbd-failed` */
export async function resizeKernel(name: string, backend: string, size: number): Promise<void> {
  await command(Command.reconfigure, [
    indexOf(name),
    textAttribute(Attribute.backendIdentifier, backend),
    longAttribute(Attribute.sizeBytes, size),
    longAttribute(Attribute.blockSizeBytes, BLOCK_BYTES),
  ]);
}

/**
 * Takes the device's connection away: what it was asked and has not answered fails, and so does everything from now on.
 * It is free again when nobody has it open any more. @throws UllageError `kernel-nbd-failed`
 */
export async function disconnectKernel(name: string): Promise<void> {
  await command(Command.disconnect, [indexOf(name)]);
}

async function command(code: number, attributes: Buffer[]): ReturnType<typeof netlinkRequest> {
  const family = await findFamily("nbd");
  if (family === undefined) throw failed("this kernel has no module nbd");
  try {
    return await netlinkRequest(family, code, attributes);
  } catch (error) {
    throw failed(describeError(error), error);
  }
}

function indexOf(name: string): Buffer {
  return numberAttribute(Attribute.index, Number(name.slice("nbd".length)));
}

/** The old short form ("NBD_OPT_EXPORT_NAME"): the kernel takes none of what the longer one can agree on. */
async function handshake(socket: number): Promise<{ size: number; flags: number }> {
  await receive(socket, 18);
  const hello = Buffer.alloc(20);
  hello.writeUInt32BE(HandshakeFlag.fixedNewstyle | HandshakeFlag.noZeroes, 0);
  hello.writeUInt32BE(OPTION_MAGIC_HIGH, 4);
  hello.writeUInt32BE(OPTION_MAGIC_LOW, 8);
  hello.writeUInt32BE(Option.exportName, 12);
  writeSync(socket, hello); // the length of the name is 0
  const reply = await receive(socket, 10);
  return { size: Number(reply.readBigUInt64BE(0)), flags: reply.readUInt16BE(8) };
}

async function receive(socket: number, length: number): Promise<Buffer> {
  const buffer = Buffer.alloc(length);
  for (let have = 0; have < length;) {
    const { bytesRead } = await promisify(read)(socket, buffer, have, length - have, null);
    if (bytesRead === 0) throw failed("the handshake with the helper failed");
    have += bytesRead;
  }
  return buffer;
}

function failed(why: string, cause?: unknown): UllageError {
  return new UllageError("kernel-nbd-failed", `the kernel's NBD client can't be used: ${why}`, {
    hint: "attach it with --via fuse",
    ...(cause === undefined ? {} : { cause }),
  });
}
