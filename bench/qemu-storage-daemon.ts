/** A qemu-storage-daemon with one qcow2 disk over NBD, and its QMP monitor. */
import { once } from "node:events";
import { rm } from "node:fs/promises";
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { type RunningServer, startServer } from "./process.ts";

interface QmpMessage {
  return?: unknown;
  error?: { desc: string };
}

export class QemuStorageDaemon {
  readonly uri: string;
  readonly #server: RunningServer;
  readonly #monitor: Socket;
  readonly #lines: AsyncIterator<string>;
  readonly #sockets: readonly string[];

  private constructor(server: RunningServer, monitor: Socket, sockets: readonly string[]) {
    this.#server = server;
    this.#monitor = monitor;
    this.#sockets = sockets;
    this.#lines = createInterface({ input: monitor })[Symbol.asyncIterator]();
    this.uri = `nbd+unix:///disk?socket=${sockets[0]}`;
  }

  static async start(folder: string, file: string): Promise<QemuStorageDaemon> {
    const [nbd, qmp] = ["qsd-nbd.sock", "qsd-qmp.sock"].map((name) => join(folder, name));
    const disk = ["--blockdev", `driver=file,node-name=file,filename=${file},discard=unmap`];
    const format = ["--blockdev", "driver=qcow2,node-name=disk,file=file,discard=unmap"];
    const serve = ["--nbd-server", `addr.type=unix,addr.path=${nbd}`];
    const offer = ["--export", "nbd,id=export,node-name=disk,name=disk,writable=on"];
    const monitor = ["--chardev", `socket,id=qmp,path=${qmp},server=on,wait=off`, "--monitor", "chardev=qmp"];
    const server = await startServer("qemu-storage-daemon", [...disk, ...format, ...serve, ...offer, ...monitor], nbd);
    const socket = connect(qmp);
    await once(socket, "connect");
    const daemon = new QemuStorageDaemon(server, socket, [nbd, qmp]);
    await daemon.#next(); // the greeting
    await daemon.command("qmp_capabilities");
    return daemon;
  }

  /** @throws Error with what QEMU says against it */
  async command(execute: string, args?: object): Promise<unknown> {
    this.#monitor.write(`${JSON.stringify({ execute, ...(args && { arguments: args }) })}\n`);
    for (;;) {
      const message = await this.#next();
      if (message.error !== undefined) throw new Error(`${execute}: ${message.error.desc}`);
      if ("return" in message) return message.return;
    }
  }

  async #next(): Promise<QmpMessage> {
    const line = await this.#lines.next();
    if (line.done === true) throw new Error("qemu-storage-daemon closed its monitor");
    return JSON.parse(line.value) as QmpMessage;
  }

  async stop(): Promise<void> {
    this.#monitor.destroy();
    await this.#server.stop();
    for (const socket of this.#sockets) await rm(socket, { force: true });
  }
}
