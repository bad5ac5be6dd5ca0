import koffi from "koffi";

/**
 * The only file with foreign calls, beside native-codecs.ts. Pointers are passed as Numbers (user addresses stay below
 * 2^47), so that no call allocates. A wrong address or length here corrupts memory: callers are the classes in base/, which check bounds.
 * Layouts are those of Linux LP64 (x86-64 and arm64 are equal in everything used here).
 */
const libc = koffi.load("libc.so.6");

const preadv2Call = libc.func("int64_t preadv2(int, uintptr_t, int, int64_t, int)");
const preadCall = libc.func("int64_t pread(int, uintptr_t, size_t, int64_t)");
const pwriteCall = libc.func("int64_t pwrite(int, uintptr_t, size_t, int64_t)");
const fallocateCall = libc.func("int fallocate(int, int, int64_t, int64_t)");
const ftruncateCall = libc.func("int ftruncate(int, int64_t)");
const lseekCall = libc.func("int64_t lseek(int, int64_t, int)");
const flockCall = libc.func("int flock(int, int)");
const fcntlCall = libc.func("int fcntl(int, int, int)");
const syncFileRangeCall = libc.func("int sync_file_range(int, int64_t, int64_t, unsigned int)");
const fadviseCall = libc.func("int posix_fadvise(int, int64_t, int64_t, int)");
const statxCall = libc.func("int statx(int, const char *, int, unsigned int, uintptr_t)");
const statfsCall = libc.func("int fstatfs(int, uintptr_t)");
const mmapCall = libc.func("uintptr_t mmap(uintptr_t, size_t, int, int, int, int64_t)");
const munmapCall = libc.func("int munmap(uintptr_t, size_t)");
const mincoreCall = libc.func("int mincore(uintptr_t, size_t, uintptr_t)");
const socketCall = libc.func("int socket(int, int, int)");
const bindCall = libc.func("int bind(int, uintptr_t, uint32_t)");
const listenCall = libc.func("int listen(int, int)");
const accept4Call = libc.func("int accept4(int, uintptr_t, uintptr_t, int)");
const setsockoptCall = libc.func("int setsockopt(int, int, int, uintptr_t, uint32_t)");
const getsockoptCall = libc.func("int getsockopt(int, int, int, uintptr_t, uintptr_t)");
const getsocknameCall = libc.func("int getsockname(int, uintptr_t, uintptr_t)");
const pollCall = libc.func("int poll(uintptr_t, unsigned long, int)");
const eventfdCall = libc.func("int eventfd(unsigned int, int)");
const readCall = libc.func("int64_t read(int, uintptr_t, size_t)");
const writeCall = libc.func("int64_t write(int, uintptr_t, size_t)");
const sendmsgCall = libc.func("int64_t sendmsg(int, uintptr_t, int)");
const sendtoCall = libc.func("int64_t sendto(int, uintptr_t, size_t, int, uintptr_t, uint32_t)");
const recvCall = libc.func("int64_t recv(int, uintptr_t, size_t, int)");
const recvmsgCall = libc.func("int64_t recvmsg(int, uintptr_t, int)");
const connectCall = libc.func("int connect(int, uintptr_t, uint32_t)");
const memfdCreateCall = libc.func("int memfd_create(const char *, unsigned int)");
const closeCall = libc.func("int close(int)");
const umaskCall = libc.func("unsigned int umask(unsigned int)");
const exitCall = libc.func("void _exit(int)");
const prctlCall = libc.func("int prctl(int, unsigned long, unsigned long, unsigned long, unsigned long)");

/** errno of the last failed call on this thread; valid only right after it. */
export const errno = (): number => koffi.errno();

/** The address of a buffer's first byte. Only for memory that never moves: `Buffer.allocUnsafeSlow` kept referenced. */
export function addressOf(buffer: Uint8Array): number {
  return Number(koffi.address(buffer));
}

export const EAGAIN = 11;
export const EINTR = 4;
const names: Record<number, string> = Object.fromEntries(
  Object.entries(koffi.os.errno).map(([name, value]) => [value, name]),
);

/** `ENOSPC` for 28, and so on. */
export function errnoName(value: number): string {
  if (value === 95) return "EOPNOTSUPP";
  if (value === EAGAIN) return "EAGAIN";
  return names[value] ?? `E${value}`;
}

// ---- file data -----------------------------------------------------------------------------------------------------

const RWF_NOWAIT = 8;
const iovec = Buffer.allocUnsafeSlow(16);
const iovecWords = new Uint32Array(iovec.buffer, iovec.byteOffset, 4);
const iovecAddress = addressOf(iovec);

/** preadv2(2) of one range with RWF_NOWAIT. @returns bytes read, or -1 with `errno` EAGAIN, EOPNOTSUPP, … */
export function preadNowait(fd: number, address: number, length: number, offset: number): number {
  iovecWords[0] = address >>> 0;
  iovecWords[1] = (address / 4294967296) | 0;
  iovecWords[2] = length;
  iovecWords[3] = 0;
  return preadv2Call(fd, iovecAddress, 1, offset, RWF_NOWAIT) as number;
}

/** posix_fadvise(2): whether the kernel reads ahead of what it is asked for. */
export function readsAhead(fd: number, ahead: boolean): void {
  const POSIX_FADV_NORMAL = 0;
  const POSIX_FADV_RANDOM = 1;
  fadviseCall(fd, 0, 0, ahead ? POSIX_FADV_NORMAL : POSIX_FADV_RANDOM);
}

const RWF_DONTCACHE = 128;

/**
 * preadv2(2) with RWF_DONTCACHE in the thread pool: what was not in the page cache before does not stay there.
 * @param buffer memory that does not move @returns bytes read, or -1: read without, that says what the matter is
 */
export function preadPassingInPool(fd: number, buffer: Buffer, length: number, offset: number): Promise<number> {
  const vector = Buffer.allocUnsafeSlow(16);
  vector.writeBigUInt64LE(BigInt(addressOf(buffer)), 0);
  vector.writeBigUInt64LE(BigInt(length), 8);
  return new Promise((resolve, reject) => {
    const done = (error: Error | null, result: number): void => {
      if (error) reject(error);
      else resolve(vector.length > 0 && buffer.length > 0 ? result : -1); // which keeps both for the time of the call
    };
    preadv2Call.async(fd, addressOf(vector), 1, offset, RWF_DONTCACHE, done);
  });
}

export function pread(fd: number, address: number, length: number, offset: number): number {
  return preadCall(fd, address, length, offset) as number;
}

export function pwrite(fd: number, address: number, length: number, offset: number): number {
  return pwriteCall(fd, address, length, offset) as number;
}

const FALLOC_FL_KEEP_SIZE = 1;
const FALLOC_FL_PUNCH_HOLE = 2;

/** fallocate(2) PUNCH_HOLE|KEEP_SIZE on the calling thread. @returns 0, or -1 with `errno` */
export function punchHole(fd: number, offset: number, length: number): number {
  return fallocateCall(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length) as number;
}

/** The same in the thread pool. @returns 0, or the errno */
export function punchHoleInPool(fd: number, offset: number, length: number): Promise<number> {
  return fallocateInPool(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
}

/** fallocate(2) of the first `length` bytes, in the thread pool. @returns 0, or the errno */
export function allocateInPool(fd: number, length: number): Promise<number> {
  return fallocateInPool(fd, 0, 0, length);
}

function fallocateInPool(fd: number, mode: number, offset: number, length: number): Promise<number> {
  return new Promise((resolve, reject) => {
    // koffi reads errno of the pool's thread only inside the call, so a failure is looked up again on this thread.
    fallocateCall.async(fd, mode, offset, length, (error: Error | null, result: number) => {
      if (error) reject(error);
      else if (result === 0) resolve(0);
      else resolve(fallocateCall(fd, mode, offset, length) === 0 ? 0 : errno());
    });
  });
}

const SEEK_DATA = 3;
const SEEK_HOLE = 4;

/** lseek(2) SEEK_DATA. @returns the offset, -1 when there is no data behind `offset`; throws on anything else */
export function seekData(fd: number, offset: number): number {
  return seek(fd, offset, SEEK_DATA);
}

/** lseek(2) SEEK_HOLE. */
export function seekHole(fd: number, offset: number): number {
  return seek(fd, offset, SEEK_HOLE);
}

/** The same, in the thread pool: for files whose file system may let one wait. */
export const seekDataInPool = (fd: number, offset: number): Promise<number> => seekInPool(fd, offset, SEEK_DATA);
export const seekHoleInPool = (fd: number, offset: number): Promise<number> => seekInPool(fd, offset, SEEK_HOLE);

function seekInPool(fd: number, offset: number, whence: number): Promise<number> {
  return new Promise((resolve, reject) => {
    lseekCall.async(fd, offset, whence, (error: Error | null, result: number) => {
      if (error) return reject(error);
      try {
        resolve(result >= 0 ? result : seek(fd, offset, whence)); // why it failed is only told on this thread
      } catch (failure) {
        reject(failure);
      }
    });
  });
}

function seek(fd: number, offset: number, whence: number): number {
  const ENXIO = 6;
  const result = lseekCall(fd, offset, whence) as number;
  if (result >= 0) return result;
  const code = errno();
  if (code === ENXIO) return -1;
  throw Object.assign(new Error(`lseek: ${errnoName(code)}`), { code: errnoName(code) });
}

/** sync_file_range(2) SYNC_FILE_RANGE_WRITE: starts write-back, waits for nothing. Best effort. */
export function startWriteback(fd: number, offset: number, length: number): void {
  syncFileRangeCall(fd, offset, length, 2);
}

/** posix_fadvise(2) DONTNEED over the whole file. */
export function dropPageCache(fd: number): void {
  const POSIX_FADV_DONTNEED = 4;
  fadviseCall(fd, 0, 0, POSIX_FADV_DONTNEED);
}

/** Whether any page of [offset, offset + length) is in the page cache (mincore(2)). */
export function anyPageCached(fd: number, offset: number, length: number): boolean {
  const PROT_READ = 1;
  const MAP_SHARED = 1;
  const pages = Math.ceil(length / 4096);
  const vector = Buffer.allocUnsafeSlow(pages);
  const mapping = mmapCall(0, length, PROT_READ, MAP_SHARED, fd, offset) as number;
  if (mapping < 0 || mapping >= 2 ** 47) throw new Error(`mmap: ${errnoName(errno())}`);
  try {
    if (mincoreCall(mapping, length, addressOf(vector)) !== 0) throw new Error(`mincore: ${errnoName(errno())}`);
    return vector.some((page) => (page & 1) !== 0);
  } finally {
    munmapCall(mapping, length);
  }
}

// ---- shared memory --------------------------------------------------------------------------------------------------

const F_DUPFD_CLOEXEC = 1030;
const F_ADD_SEALS = 1033;
const F_GET_SEALS = 1034;
const F_SEAL_SEAL = 1;
const F_SEAL_SHRINK = 2;
const F_SEAL_GROW = 4;
const F_SEAL_FUTURE_WRITE = 0x10;

/** memfd_create(2), close-on-exec, of so many zero bytes. @throws Error with `code` */
export function memoryFile(name: string, length: number): number {
  const MFD_CLOEXEC = 1;
  const MFD_ALLOW_SEALING = 2;
  const fd = memfdCreateCall(name, MFD_CLOEXEC | MFD_ALLOW_SEALING) as number;
  if (fd < 0) throw systemError("memfd_create");
  if (ftruncateCall(fd, length) === 0) return fd;
  const error = systemError("ftruncate");
  closeCall(fd);
  throw error;
}

/** From now on it keeps its size, and only mappings that exist may write to it. @throws Error with `code` */
export function sealMemoryFile(fd: number): void {
  const seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL;
  if (fcntlCall(fd, F_ADD_SEALS, seals) !== 0) throw systemError("fcntl");
}

/** Whether the file can't become shorter any more: then a mapping of it is safe, whoever else has it. */
export function keepsItsSize(fd: number): boolean {
  const seals = fcntlCall(fd, F_GET_SEALS, 0) as number;
  return seals >= 0 && (seals & F_SEAL_SHRINK) !== 0;
}

const mappings = new FinalizationRegistry<{ address: number; length: number }>(({ address, length }) => {
  munmapCall(address, length);
});

/**
 * mmap(2) MAP_SHARED of a file's first bytes. The mapping goes when nobody refers to the array's buffer any more; before,
 * the file must not become shorter.
 * @throws Error with `code`
 */
export function mapShared(fd: number, length: number, writable: boolean): Uint8Array {
  const PROT_READ = 1;
  const PROT_WRITE = 2;
  const MAP_SHARED = 1;
  const address = mmapCall(0, length, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0) as number;
  if (address < 0 || address >= 2 ** 47) throw systemError("mmap");
  const memory = koffi.view(BigInt(address), length);
  mappings.register(memory, { address, length });
  return new Uint8Array(memory);
}

/** fcntl(2) F_DUPFD_CLOEXEC. @throws Error with `code` */
export function duplicate(fd: number): number {
  const copy = fcntlCall(fd, F_DUPFD_CLOEXEC, 3) as number;
  if (copy < 0) throw systemError("fcntl");
  return copy;
}

function systemError(call: string): Error {
  const code = errnoName(errno());
  return Object.assign(new Error(`${call}: ${code}`), { code });
}

// ---- identity and locks --------------------------------------------------------------------------------------------

const LOCK_EX = 2;
const LOCK_NB = 4;
const LOCK_UN = 8;

/** flock(2) LOCK_EX|LOCK_NB. @returns false when somebody else holds it */
export function tryLock(fd: number): boolean {
  if (flockCall(fd, LOCK_EX | LOCK_NB) === 0) return true;
  const code = errno();
  if (code === EAGAIN) return false;
  throw Object.assign(new Error(`flock: ${errnoName(code)}`), { code: errnoName(code) });
}

export function unlock(fd: number): void {
  flockCall(fd, LOCK_UN);
}

/** STATX_MNT_ID_UNIQUE of an open file as a decimal string, "" when the kernel does not know it. */
export function uniqueMountId(fd: number): string {
  const AT_EMPTY_PATH = 0x1000;
  const STATX_MNT_ID_UNIQUE = 0x4000;
  const buffer = Buffer.allocUnsafeSlow(256).fill(0);
  if (statxCall(fd, "", AT_EMPTY_PATH, STATX_MNT_ID_UNIQUE, addressOf(buffer)) !== 0) return "";
  if ((buffer.readUInt32LE(0) & STATX_MNT_ID_UNIQUE) === 0) return "";
  return buffer.readBigUInt64LE(0x90).toString();
}

const fileSystems: Record<number, string> = {
  0xef53: "ext4",
  0x58465342: "xfs",
  0x9123683e: "btrfs",
  0x01021994: "tmpfs",
  0x794c7630: "overlay",
  0x6969: "nfs",
  0x01021997: "9p",
  0x65735546: "fuse",
  0x2fc12fc1: "zfs",
  0x6a656a63: "virtiofs",
};

/** The file system's name by its magic number (statfs(2)). */
export function fileSystemName(fd: number): string {
  const buffer = Buffer.allocUnsafeSlow(256).fill(0);
  if (statfsCall(fd, addressOf(buffer)) !== 0) return "";
  const magic = buffer.readUInt32LE(0);
  return fileSystems[magic] ?? `0x${magic.toString(16)}`;
}

/** fcntl(2) F_SETFD FD_CLOEXEC. */
export function setCloseOnExec(fd: number): void {
  fcntlCall(fd, 2, 1);
}

/** fcntl(2) F_SETFL with O_NONBLOCK. */
export function setNonBlocking(fd: number): void {
  fcntlCall(fd, 4, 0o4000);
}

/** _exit(2): ends the process now, whatever its threads are doing. */
export function exitNow(code: number): never {
  exitCall(code);
  throw new Error("the process goes on after its end");
}

export function umask(mask: number): number {
  return umaskCall(mask) as number;
}

/**
 * prctl(2) PR_SET_IO_FLUSHER for this thread, the threads it starts and the programs they run: memory that the kernel
 * needs for it is not made free by writing back dirty pages, which may have to come through this very process.
 * @returns false without CAP_SYS_RESOURCE
 */
export function setIoFlusher(): boolean {
  const PR_SET_IO_FLUSHER = 57;
  return prctlCall(PR_SET_IO_FLUSHER, 1, 0, 0, 0) === 0;
}

// ---- sockets -------------------------------------------------------------------------------------------------------

export const AF_UNIX = 1;
export const AF_INET = 2;
export const AF_INET6 = 10;
const SOCK_STREAM = 1;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;
export const SOL_SOCKET = 1;
export const SO_REUSEADDR = 2;
export const SO_SNDBUF = 7;
export const SO_SNDBUFFORCE = 32;
export const SO_KEEPALIVE = 9;
export const SO_ACCEPTCONN = 30;
export const IPPROTO_TCP = 6;
export const TCP_NODELAY = 1;
export const TCP_KEEPIDLE = 4;
export const TCP_KEEPINTVL = 5;
export const TCP_KEEPCNT = 6;
export const TCP_USER_TIMEOUT = 18;
export const IPPROTO_IPV6 = 41;
export const IPV6_V6ONLY = 26;

const word = Buffer.allocUnsafeSlow(8);
const wordAddress = addressOf(word);

/** A non-blocking, close-on-exec stream socket, or -1 with `errno`. */
export function streamSocket(family: number): number {
  return socketCall(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0) as number;
}

/** The same, but it blocks: for whoever reads in the thread pool. */
export function blockingStreamSocket(family: number): number {
  return socketCall(family, SOCK_STREAM | SOCK_CLOEXEC, 0) as number;
}

/** A close-on-exec socket to the kernel's generic netlink, which blocks; -1 with `errno`. */
export function genericNetlinkSocket(): number {
  const AF_NETLINK = 16;
  const SOCK_RAW = 3;
  const NETLINK_GENERIC = 16;
  return socketCall(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC) as number;
}

/** @param address a sockaddr, in memory of its own (`Buffer.allocUnsafeSlow`) @returns 0, or -1 with `errno` */
export function bind(fd: number, address: Buffer): number {
  return bindCall(fd, addressOf(address), address.length) as number;
}

export function listen(fd: number, backlog: number): number {
  return listenCall(fd, backlog) as number;
}

/** accept4(2), non-blocking and close-on-exec. @returns the descriptor, or -1 with `errno` */
export function accept(fd: number): number {
  return accept4Call(fd, 0, 0, SOCK_NONBLOCK | SOCK_CLOEXEC) as number;
}

/** @returns 0, or -1 with `errno` */
export function setSocketOption(fd: number, level: number, option: number, value: number): number {
  word.writeInt32LE(value, 0);
  return setsockoptCall(fd, level, option, wordAddress, 4) as number;
}

export function getSocketOption(fd: number, level: number, option: number): number {
  word.writeInt32LE(0, 0);
  word.writeUInt32LE(4, 4);
  getsockoptCall(fd, level, option, wordAddress, wordAddress + 4);
  return word.readInt32LE(0);
}

/** getsockname(2): the sockaddr's bytes, or undefined when `fd` is no socket. */
export function socketName(fd: number): Buffer | undefined {
  const buffer = Buffer.allocUnsafeSlow(128).fill(0);
  word.writeUInt32LE(128, 0);
  if (getsocknameCall(fd, addressOf(buffer), wordAddress) !== 0) return undefined;
  return buffer.subarray(0, word.readUInt32LE(0));
}

/**
 * sendmsg(2) with MSG_DONTWAIT | MSG_NOSIGNAL.
 * @param message address of a `struct msghdr` @returns bytes taken, or -1 with `errno` EAGAIN, EPIPE, …
 */
export function sendMessage(fd: number, message: number): number {
  const MSG_DONTWAIT = 0x40;
  const MSG_NOSIGNAL = 0x4000;
  return sendmsgCall(fd, message, MSG_DONTWAIT | MSG_NOSIGNAL) as number;
}

/**
 * Sends one datagram from a socket of its own.
 * @param address a sockaddr; like `message` in memory of its own (`Buffer.allocUnsafeSlow`) @returns 0, or the errno
 */
export function sendDatagram(family: number, address: Buffer, message: Buffer): number {
  const SOCK_DGRAM = 2;
  const MSG_NOSIGNAL = 0x4000;
  const fd = socketCall(family, SOCK_DGRAM | SOCK_CLOEXEC, 0) as number;
  if (fd < 0) return errno();
  const sent = sendtoCall(fd, addressOf(message), message.length, MSG_NOSIGNAL, addressOf(address), address.length);
  const failure = (sent as number) < 0 ? errno() : 0;
  closeCall(fd);
  return failure;
}

/** recv(2) with MSG_DONTWAIT. @returns bytes, 0 at the end of the stream, or -1 with `errno` EAGAIN, ECONNRESET, … */
export function receive(fd: number, address: number, length: number): number {
  const MSG_DONTWAIT = 0x40;
  return recvCall(fd, address, length, MSG_DONTWAIT) as number;
}

/**
 * recvmsg(2) with MSG_DONTWAIT | MSG_CMSG_CLOEXEC.
 * @param message address of a `struct msghdr` @returns bytes, 0 at the end of the stream, or -1 with `errno`
 */
export function receiveMessage(fd: number, message: number): number {
  const MSG_DONTWAIT = 0x40;
  const MSG_CMSG_CLOEXEC = 0x40000000;
  return recvmsgCall(fd, message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) as number;
}

/** connect(2). On a unix socket it waits for nothing. @returns 0, or -1 with `errno` ECONNREFUSED, EAGAIN, ENOENT, … */
export function connect(fd: number, address: Buffer): number {
  return connectCall(fd, addressOf(address), address.length) as number;
}

/** Who was at the other end of a unix socket when it was connected (SO_PEERCRED). @returns undefined for no unix socket */
export function peerCredentials(fd: number): { pid: number; uid: number; gid: number } | undefined {
  const SO_PEERCRED = 17;
  const buffer = Buffer.allocUnsafeSlow(16).fill(0);
  buffer.writeUInt32LE(12, 12);
  const address = addressOf(buffer);
  if (getsockoptCall(fd, SOL_SOCKET, SO_PEERCRED, address, address + 12) !== 0) return undefined;
  if (buffer.readInt32LE(0) === 0) return undefined;
  return { pid: buffer.readInt32LE(0), uid: buffer.readUInt32LE(4), gid: buffer.readUInt32LE(8) };
}

/** close(2), for descriptors that never were Node's. */
export function closeDescriptor(fd: number): void {
  closeCall(fd);
}

/** poll(2) on an array of `struct pollfd` (8 bytes each). Blocks: only for threads of their own. */
export function poll(pollfds: Buffer, timeoutMs: number): number {
  return pollCall(addressOf(pollfds), pollfds.length / 8, timeoutMs) as number;
}

/** A non-blocking, close-on-exec eventfd. */
export function eventfd(): number {
  return eventfdCall(0, SOCK_NONBLOCK | SOCK_CLOEXEC) as number;
}

/** Adds 1 to an eventfd: wakes whoever polls it. */
export function signalEvent(fd: number): void {
  word.writeBigUInt64LE(1n, 0);
  writeCall(fd, wordAddress, 8);
}

/** Resets an eventfd. */
export function drainEvent(fd: number): void {
  readCall(fd, wordAddress, 8);
}
