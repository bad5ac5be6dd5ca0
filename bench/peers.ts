/** The servers that Ullage is measured beside, each with the options that suit it best. */
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { type RunningServer, run, startServer } from "./process.ts";

/** A server with one disk on a unix socket. */
export interface DiskServer extends RunningServer {
  /** For people: `nbdkit file` */
  name: string;
  /** `nbd+unix:///export?socket=/path` */
  uri: string;
}

export async function nbdkitFile(folder: string, file: string): Promise<DiskServer> {
  return diskServer("nbdkit", folder, (socket) => ["nbdkit", "-f", "-U", socket, "file", file]);
}

/** Overlay, cache of everything read, and readahead over HTTP: what nbdkit offers for a lazily filled writable disk. */
export async function nbdkitCurl(folder: string, url: string): Promise<DiskServer> {
  const filters = ["--filter=cow", "--filter=readahead", "--filter=cache"];
  return diskServer("nbdkit curl", folder, (socket) => {
    return ["nbdkit", "-f", "-U", socket, ...filters, "curl", url, "cache-on-read=true"];
  });
}

/** @param readOnly so that several may serve files with one below them all */
export async function qemuNbd(
  folder: string,
  file: string,
  format: "raw" | "qcow2",
  readOnly = false,
): Promise<DiskServer> {
  return diskServer(`qemu-nbd ${format}`, folder, (socket) => {
    const how = ["--cache=writeback", "--discard=unmap", ...(readOnly ? ["-r"] : [])];
    return ["qemu-nbd", "-f", format, "-k", socket, "-t", "-e", "16", ...how, file];
  });
}

/** A qcow2 overlay that keeps what it reads over HTTP. */
export async function qemuNbdCurl(folder: string, url: string): Promise<DiskServer> {
  const overlay = join(folder, `overlay-${++started}.qcow2`);
  const backing = JSON.stringify({ driver: "raw", file: { driver: new URL(url).protocol.slice(0, -1), url } });
  await run("qemu-img", [
    "create",
    "-q",
    "-f",
    "qcow2",
    "-o",
    "cluster_size=64k",
    "-b",
    `json:${backing}`,
    "-F",
    "raw",
    overlay,
  ]);
  const open = { driver: "copy-on-read", file: { driver: "qcow2", file: { driver: "file", filename: overlay } } };
  const server = await diskServer("qemu-nbd curl", folder, (socket) => {
    return ["qemu-nbd", "-k", socket, "-t", "-e", "16", `json:${JSON.stringify(open)}`];
  });
  const stop = async (): Promise<void> => {
    await server.stop();
    await rm(overlay, { force: true });
  };
  return { ...server, stop };
}

/** A qcow2 file over a raw one, clusters of 64 KiB. */
export async function makeOverlay(file: string, backing: string): Promise<void> {
  await run("qemu-img", ["create", "-q", "-f", "qcow2", "-o", "cluster_size=64k", "-b", backing, "-F", "raw", file]);
}

let started = 0;

async function diskServer(name: string, folder: string, command: (socket: string) => string[]): Promise<DiskServer> {
  const socket = join(folder, `peer-${++started}.sock`);
  const [program, ...args] = command(socket);
  const server = await startServer(program, args, socket);
  const stop = async (): Promise<void> => {
    await server.stop();
    await rm(socket, { force: true });
  };
  return { ...server, stop, name, uri: `nbd+unix:///?socket=${socket}` };
}
