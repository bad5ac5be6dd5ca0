import { spawnSync } from "node:child_process";
import { accessSync, constants, existsSync } from "node:fs";
import { delimiter, join } from "node:path";
import type { TestContext } from "node:test";

// Debian's own programs come first: nbdsh runs `python3`, which must be the one that python3-libnbd is for and not a
// pyenv's; and plain users lack the sbin folders. Whoever imports this passes it on to the programs that it starts.
process.env.PATH = ["/usr/local/sbin", "/usr/sbin", "/usr/bin", "/sbin", "/bin", process.env.PATH ?? ""].join(
  delimiter,
);

/**
 * What tests use beyond npm, and how it is recognised: mostly a command of that name on PATH (the sbin folders
 * included), and the Debian package that brings it. `npm test` installs the packages when it may.
 */
interface Tool {
  /** Debian package; none when no package can provide it (a device, a privilege) */
  package?: string;
  /** Default: a command of that name exists. */
  present?: () => boolean;
}

/** Debian has it outside of PATH. */
export const sftpServer = "/usr/lib/openssh/sftp-server";

const tools = {
  "qemu-img": { package: "qemu-utils" },
  "qemu-io": { package: "qemu-utils" },
  "qemu-nbd": { package: "qemu-utils" },
  "qemu-storage-daemon": { package: "qemu-system-common" },
  nbdinfo: { package: "libnbd-bin" },
  nbdcopy: { package: "libnbd-bin" },
  nbdfuse: { package: "libnbd-bin" },
  nbdsh: { package: "python3-libnbd", present: () => commandExists("nbdsh") && pythonImports("nbd") },
  nbdkit: { package: "nbdkit" },
  "nbd-server": { package: "nbd-server" },
  fusermount3: { package: "fuse3" },
  sshfs: { package: "sshfs" },
  "sftp-server": { package: "openssh-sftp-server", present: () => existsSync(sftpServer) },
  fio: { package: "fio" },
  "mkfs.xfs": { package: "xfsprogs" },
  xfs_io: { package: "xfsprogs" },
  "mkfs.ext4": { package: "e2fsprogs" },
  e2fsck: { package: "e2fsprogs" },
  debugfs: { package: "e2fsprogs" },
  nginx: { package: "nginx-light" },
  certtool: { package: "gnutls-bin" },
  psktool: { package: "gnutls-bin" },
  xz: { package: "xz-utils" },
  zstd: { package: "zstd" },
  curl: { package: "curl" },
  jq: { package: "jq" },
  chromium: { package: "chromium" },
  promtool: { package: "prometheus" },
  strace: { package: "strace" },
  "systemd-analyze": { package: "systemd" },
  "systemd-socket-activate": { package: "systemd" },
  zsh: { package: "zsh" },
  fish: { package: "fish" },
  python3: { package: "python3" },
  losetup: { package: "mount" },
  unshare: { package: "util-linux" },
  mount: { package: "mount" },
  script: { package: "bsdutils" },
  mmdebstrap: { package: "mmdebstrap" },
  "qemu-system-x86_64": { package: "qemu-system-x86" },
  "ceph-mon": { package: "ceph-mon" },
  "ceph-mgr": { package: "ceph-mgr" },
  "ceph-osd": { package: "ceph-osd" },
  radosgw: { package: "radosgw" },
  ceph: { package: "ceph-common" },
  "docker-registry": { package: "docker-registry" },
  skopeo: { package: "skopeo" },
  htpasswd: { package: "apache2-utils" },
  openssl: { package: "openssl" },
  root: { present: () => process.getuid?.() === 0 },
  fuse: { present: () => existsSync("/dev/fuse") },
  loop: { present: () => existsSync("/dev/loop-control") },
} satisfies Record<string, Tool>;

/** The name of a command, or `root`, `fuse` (/dev/fuse), `loop` (/dev/loop-control). */
export type ToolName = keyof typeof tools;

/** Only the tests with guests need these; they are large. */
const vmTools = new Set<ToolName>(["qemu-system-x86_64"]);
/** Only the tests with real stores, registries and images need these, those with guests that boot from there included. */
const sourceTools = new Set<ToolName>([
  ...(["ceph-mon", "ceph-mgr", "ceph-osd", "radosgw", "ceph"] as const),
  ...(["docker-registry", "skopeo", "htpasswd", "mmdebstrap"] as const),
]);

/** Every tool that a group of tests may ask for. */
export function toolsFor(group: "tests" | "sources" | "vm"): ToolName[] {
  const names = Object.keys(tools) as ToolName[];
  return names.filter((name) => {
    if (vmTools.has(name)) return group === "vm";
    return !sourceTools.has(name) || group !== "tests";
  });
}

/** The Debian packages, each once, that bring the named tools. */
export function packagesFor(names: readonly ToolName[]): string[] {
  return [...new Set(names.flatMap((name) => (tools[name] as Tool).package ?? []))];
}

/** Those of the named tools that this machine does not have. */
export function missingTools(...names: ToolName[]): ToolName[] {
  return names.filter((name) => {
    const present = (tools[name] as Tool).present ?? (() => commandExists(name));
    return !present();
  });
}

/**
 * Skips the test, naming what is missing, unless every tool is there. CI fails on skips (see skip-reporter.ts).
 * @returns whether the test can go on: `if (!requireTool(t, "qemu-img")) return;`
 */
export function requireTool(t: TestContext, ...names: ToolName[]): boolean {
  const missing = missingTools(...names);
  if (missing.length === 0) return true;
  t.skip(`needs ${missing.map(describe).join(", ")}`);
  return false;
}

/** `fio (apt-get install fio)` */
export function describe(name: ToolName): string {
  const from = (tools[name] as Tool).package;
  return from === undefined ? name : `${name} (apt-get install ${from})`;
}

/** Whether a command is on PATH. */
export function commandExists(name: string): boolean {
  return (process.env.PATH ?? "").split(delimiter).some((folder) => {
    try {
      accessSync(join(folder, name), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

function pythonImports(module: string): boolean {
  return spawnSync("python3", ["-c", `import ${module}`], { stdio: "ignore", timeout: 20_000 }).status === 0;
}
