/**
 * A bootable Debian, made once and kept outside the checkout: a raw ext4 image of 1 GiB, its kernel and its initrd.
 * Building needs root, mmdebstrap, mkfs.ext4 and a Debian mirror, and takes about a minute.
 */
import { createHash } from "node:crypto";
import { execFile } from "node:child_process";
import {
  cp,
  mkdir,
  mkdtemp,
  readFile,
  readdir,
  rename,
  rm,
  stat,
  symlink,
  truncate,
  writeFile,
} from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

export interface DebianImage {
  /** raw disk image holding one ext4 file system without partitions; treat it as read-only */
  image: string;
  /** bytes */
  size: number;
  kernel: string;
  initrd: string;
}

const size = 2 ** 30;
const suite = "bookworm";
const packages = ["linux-image-cloud-amd64", "systemd-sysv", "nbd-client", "kmod", "e2fsprogs", "iproute2"].concat(
  ["libatomic1", "fuse3", "libnbd-bin", "fio"], // what Ullage itself needs, attaching, and its tests
);
const buildTimeoutMs = 8 * 60_000;
/** Where guest.sh is in the image. */
export const guestProgram = "/usr/local/sbin/ullage-guest";
const guestScript = new URL("../vm/guest.sh", import.meta.url);

// Raise it when the recipe below changes: an image made by an older recipe is not used.
const recipe = 1;

/** @returns the cached image; builds it first when there is none of this recipe */
export async function debianImage(): Promise<DebianImage> {
  const cache = join(process.env.XDG_CACHE_HOME ?? join(homedir(), ".cache"), "ullage-test");
  const script = await readFile(guestScript, "utf8");
  const key = createHash("sha256")
    .update(JSON.stringify([recipe, suite, packages, size, script]))
    .digest("hex");
  const folder = join(cache, `debian-${key.slice(0, 12)}`);
  if (!(await exists(folder))) {
    await mkdir(cache, { recursive: true });
    const building = await mkdtemp(join(cache, "building-"));
    try {
      await build(building, script);
      // Two builders at once: the first rename wins, the other's copy is thrown away.
      await rename(building, folder).catch(async (error: unknown) => {
        if (!(await exists(folder))) throw error;
      });
    } finally {
      await rm(building, { recursive: true, force: true });
    }
  }
  return { image: join(folder, "disk.raw"), size, kernel: join(folder, "vmlinuz"), initrd: join(folder, "initrd") };
}

async function build(folder: string, script: string): Promise<void> {
  const root = join(folder, "root");
  await run("mmdebstrap", [
    "--quiet",
    "--mode=root",
    "--variant=minbase",
    `--include=${packages.join(",")}`,
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    suite,
    root,
  ]);
  await writeFile(join(root, "etc/fstab"), "/dev/vda / ext4 defaults,discard 0 1\n");
  await writeFile(join(root, "etc/hostname"), "ullage-guest\n");
  await writeFile(join(root, guestProgram), script, { mode: 0o755 });
  const units = join(root, "etc/systemd/system");
  await writeFile(
    join(units, "ullage-guest.service"),
    `[Unit]\nAfter=multi-user.target\n[Service]\nType=oneshot\nExecStart=${guestProgram}\n`,
  );
  await mkdir(join(units, "graphical.target.wants"));
  await symlink("/etc/systemd/system/ullage-guest.service", join(units, "graphical.target.wants/ullage-guest.service"));
  // Masked: a login prompt on the serial console would mix with what the guest prints there.
  await symlink("/dev/null", join(units, "serial-getty@ttyS0.service"));
  for (const [kind, name] of [
    ["vmlinuz-", "vmlinuz"],
    ["initrd.img-", "initrd"],
  ] as const) {
    const found = (await readdir(join(root, "boot"))).find((file) => file.startsWith(kind));
    if (found === undefined) throw new Error(`the Debian root has no /boot/${kind}*`);
    await cp(join(root, "boot", found), join(folder, name));
  }
  const image = join(folder, "disk.raw");
  await writeFile(image, "");
  await truncate(image, size);
  await run("mkfs.ext4", ["-q", "-F", "-L", "root", "-d", root, image]);
  await rm(root, { recursive: true });
}

async function run(command: string, args: readonly string[]): Promise<void> {
  const options = { timeout: buildTimeoutMs, maxBuffer: 16 * 2 ** 20 };
  await promisify(execFile)(command, args, options);
}

async function exists(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  );
}
