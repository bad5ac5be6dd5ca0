/**
 * A virtual machine that boots a Debian image. Always TCG, QEMU's own emulation: it works on every machine, /dev/kvm or
 * not. The guest powers itself off at the end (guest.sh), and QEMU ends with it.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFile, rm } from "node:fs/promises";
import { type DebianImage, guestProgram } from "../support/debian-image.ts";

export interface GuestOptions {
  /** The root disk: a QEMU block device name, `nbd+unix:///boot?socket=/path`, a file, … default: the image, which stays as it is */
  rootDisk?: string;
  /** Further disks, /dev/vdb and so on, each as the options of QEMU's -drive. */
  disks?: readonly string[];
  /** Where the console goes; overwritten. */
  consoleFile: string;
  /** host:port:name, see guest.sh */
  volume?: string;
  /** A script on the first further disk, see guest.sh */
  script?: string;
  /** Text without spaces that the guest leaves in /root/mark instead of coming up altogether, see guest.sh */
  mark?: string;
  timeoutMs: number;
}

/** A file as one of the further `disks`; what the guest writes to it is thrown away. */
export function scratchDisk(file: string): string {
  return `file=${file},format=raw,if=virtio,snapshot=on`;
}

/**
 * Boots, waits until the guest has powered off, and returns what it printed.
 * @throws Error with the console's tail when QEMU fails, or is ended because `timeoutMs` passed
 */
export async function bootGuest(debian: DebianImage, options: GuestOptions): Promise<string> {
  const commandLine = [
    "root=/dev/vda rw console=ttyS0 panic=-1 quiet mitigations=off audit=0 net.ifnames=0 systemd.show_status=0",
    ...(options.volume === undefined ? [] : [`ullage.volume=${options.volume}`]),
    ...(options.script === undefined ? [] : [`ullage.script=${options.script}`]),
    ...(options.mark === undefined ? [] : [`init=${guestProgram} ullage.mark=${options.mark}`]),
  ].join(" ");
  const rootDisk =
    options.rootDisk === undefined
      ? scratchDisk(debian.image)
      : `file=${options.rootDisk},format=raw,if=virtio,cache=none,discard=unmap`;
  const args = [
    ["-accel", "tcg,thread=multi,tb-size=512"],
    ["-cpu", "max"],
    ["-smp", "2"],
    ["-m", "1024"],
    ["-nodefaults"],
    ["-no-reboot"],
    ["-display", "none"],
    ["-monitor", "none"],
    ["-serial", `file:${options.consoleFile}`],
    ["-kernel", debian.kernel],
    ["-initrd", debian.initrd],
    ["-append", commandLine],
    ["-drive", rootDisk],
    ...(options.disks ?? []).map((disk) => ["-drive", disk]),
    ["-netdev", "user,id=n0"],
    ["-device", "virtio-net-pci,netdev=n0"],
  ].flat();
  // QEMU empties it only once it gets that far: after an early failure an older boot's console must not be taken for ours.
  await rm(options.consoleFile, { force: true });
  const qemu = spawn("qemu-system-x86_64", args, {
    stdio: ["ignore", "ignore", "pipe"],
    timeout: options.timeoutMs,
    killSignal: "SIGKILL",
  });
  let complaints = "";
  qemu.stderr.on("data", (text: Buffer) => (complaints += text.toString()));
  const [code, signal] = (await once(qemu, "close")) as [number | null, NodeJS.Signals | null];
  const console = await readFile(options.consoleFile, "utf8").catch(() => "");
  if (code === 0) return console;
  const end = signal === null ? `exit ${code}` : `ended by ${signal} after ${options.timeoutMs} ms`;
  throw new Error(`qemu: ${end}\n${complaints}\nconsole:\n${console.slice(-4000)}`);
}
