import type { File, FileBinding } from "../../src/base/file-system.ts";
import type { IoBuffer } from "../../src/base/io-buffer.ts";
import { IoError } from "../../src/base/errors.ts";
import type { SimFileSystem } from "./sim-file-system.ts";
import type { SimDisk } from "./sim-disk.ts";
import { pageBytes, sectorBytes, type SimInode } from "./sim-inode.ts";

/** An open file of a simulated process. */
export class SimFile implements File {
  readonly path: string;
  readonly inode: SimInode;
  readonly #process: SimFileSystem;
  readonly #disk: SimDisk;
  readonly #writable: boolean;
  /** Opened while a sealed file was unsealed: it may free blocks, and nothing else. */
  readonly #mayOnlyPunch: boolean;
  #closed = false;
  /** errseq_t: how many failed write-backs this descriptor knows of. */
  #errorsSeen: number;

  constructor(process: SimFileSystem, path: string, inode: SimInode, writable: boolean) {
    this.path = path;
    this.inode = inode;
    this.#process = process;
    this.#disk = process.disk;
    this.#writable = writable;
    this.#mayOnlyPunch = inode.unsealed;
    // A descriptor opened after an error that nobody was told of is told (experiment E3c).
    this.#errorsSeen = inode.errorSeen ? inode.errorCount : inode.errorCount - 1;
    inode.opens++;
    process.files.add(this);
  }

  tryRead(buffer: IoBuffer, at: number, length: number, offset: number): number {
    this.#check(buffer, at, length, offset);
    if (this.#disk.enter(this.#process) !== "alive") return 0;
    const { random, options } = this.#disk;
    let wanted = length;
    // Some leading pages are cached, then comes one that is not.
    if (random.chance(options.coldReads)) wanted = random.chance(0.5) ? 0 : this.#split(offset, length) % length;
    return this.inode.read(buffer.bytes, at, wanted, offset);
  }

  async read(buffer: IoBuffer, at: number, length: number, offset: number): Promise<number> {
    this.#check(buffer, at, length, offset);
    const first = this.#split(offset, length);
    let count = await this.#pool("read", () => this.inode.read(buffer.bytes, at, first, offset));
    if (count === first && first < length) {
      // reads are not atomic: what happens in between shows in the second part only
      const rest = length - first;
      count += await this.#pool("read", () => this.inode.read(buffer.bytes, at + first, rest, offset + first));
    }
    return count;
  }

  writeNow(buffer: IoBuffer, at: number, length: number, offset: number): void {
    this.#check(buffer, at, length, offset);
    this.#checkWritable();
    const life = this.#disk.enter(this.#process);
    if (life === "alive") this.#write(buffer, at, length, offset);
    else if (life === "dying") this.#writePart(buffer, at, length, offset);
  }

  async write(buffer: IoBuffer, at: number, length: number, offset: number): Promise<void> {
    this.#check(buffer, at, length, offset);
    this.#checkWritable();
    const first = this.#split(offset, length);
    await this.#poolWrite(buffer, at, first, offset);
    if (first < length) await this.#poolWrite(buffer, at + first, length - first, offset + first);
  }

  async datasync(): Promise<void> {
    const seq = await this.#pool(
      "datasync",
      () => this.#disk.now,
      () => {},
    );
    await this.#pool("datasync ends", () => {
      const { random, options } = this.#disk;
      if (this.#faulty() && random.chance(options.syncErrors)) this.#disk.failWriteback(this.inode, seq);
      else this.inode.makeDurable(seq);
      if (this.#errorsSeen === this.inode.errorCount) return;
      this.#errorsSeen = this.inode.errorCount;
      this.inode.errorSeen = true;
      this.#process.syncErrorsTold.push({ path: this.path, call: this.#disk.calls });
      throw new IoError(this.inode.errno, `fdatasync ${this.path}: write-back failed with ${this.inode.errno}`);
    });
  }

  startWriteback(): void {
    const { random, options } = this.#disk;
    if (this.#disk.enter(this.#process) !== "alive") return;
    if (this.#faulty() && random.chance(options.syncErrors / 4)) this.#disk.failWriteback(this.inode);
  }

  punch(offset: number, length: number): Promise<boolean> {
    this.#checkWritable();
    return this.#pool("punch", () => this.#punch(offset, length));
  }

  punchNow(offset: number, length: number): boolean {
    this.#checkWritable();
    return this.#disk.enter(this.#process) === "alive" ? this.#punch(offset, length) : true;
  }

  /** As on a file system that can't; nothing that the model runs asks for it. */
  allocate(): Promise<boolean> {
    return Promise.resolve(false);
  }

  truncate(length: number): Promise<void> {
    this.#checkWritable();
    return this.#pool("truncate", () => this.#truncate(length));
  }

  truncateNow(length: number): void {
    this.#checkWritable();
    if (this.#disk.enter(this.#process) === "alive") this.#truncate(length);
  }

  size(): number {
    this.#checkOpen();
    return this.inode.size;
  }

  seekData(offset: number): number {
    this.#checkOpen();
    for (let number = Math.floor(offset / pageBytes); number * pageBytes < this.inode.size; number++) {
      if (this.#isData(number)) return Math.max(offset, number * pageBytes);
    }
    return -1;
  }

  seekHole(offset: number): number {
    this.#checkOpen();
    for (let number = Math.floor(offset / pageBytes); number * pageBytes < this.inode.size; number++) {
      if (!this.#isData(number)) return Math.max(offset, number * pageBytes);
    }
    return this.inode.size;
  }

  dropCache(): Promise<boolean> {
    return this.#pool("dropCache", () => this.inode.evict());
  }

  allocated(): number {
    return this.inode.allocatedPages * pageBytes;
  }

  binding(): FileBinding {
    this.#checkOpen();
    const { options, bootId, mountId, device } = this.#disk;
    return {
      bootId: options.bootIdHidden ? "" : bootId,
      device,
      inode: this.inode.number,
      mountId: options.mountIdHidden ? "" : String(mountId),
      fileSystem: options.fileSystem,
    };
  }

  seal(): Promise<void> {
    return this.#pool("seal", () => {
      if (this.inode.dirty.size > 0 && !this.inode.unsealed) {
        throw new Error(`${this.path} is sealed with unsynced data (durability rule 27)`);
      }
      this.inode.sealed = true;
      this.inode.unsealed = false;
    });
  }

  unseal(): Promise<void> {
    return this.#pool("unseal", () => {
      this.inode.sealed = false;
      this.inode.unsealed = true;
    });
  }

  close(): Promise<void> {
    this.#checkOpen();
    this.#closed = true;
    return this.#process.inPool(
      `close ${this.path}`,
      () => {
        if (this.#process.files.delete(this)) this.#disk.closed(this.inode);
      },
      () => {},
    );
  }

  #isData(number: number): boolean {
    return this.inode.isData(number, this.#disk.options.seekClaimsReserved);
  }

  #poolWrite(buffer: IoBuffer, at: number, length: number, offset: number): Promise<void> {
    return this.#pool(
      "write",
      () => this.#write(buffer, at, length, offset),
      () => this.#writePart(buffer, at, length, offset),
    );
  }

  /** Writes, or fails after a prefix. */
  #write(buffer: IoBuffer, at: number, length: number, offset: number): void {
    const { random, options } = this.#disk;
    let fits = length;
    let errno = "ENOSPC";
    if (options.capacityPages < 1 << 30) fits = this.inode.fitting(offset, length, this.#disk.freePages);
    if (options.writeErrors > 0 && this.#faulty() && random.chance(options.writeErrors)) {
      fits = random.chance(0.3) ? 0 : random.below(fits + 1);
      // never inside a sector of file data: the promise is per sector (durability rule 26)
      if (length >= sectorBytes) fits = Math.max(0, fits - ((offset + fits) % sectorBytes));
      errno = random.chance(0.5) ? "EIO" : "ENOSPC";
      this.#apply(buffer, at, fits, offset);
      throw new IoError(errno, `write ${this.path}: ${fits} of ${length} bytes at ${offset}: injected ${errno}`);
    }
    this.#apply(buffer, at, fits, offset);
    if (fits < length) throw new IoError(errno, `write ${this.path}: ${fits} of ${length} bytes at ${offset}: full`);
  }

  /** A fatal signal ends a write between two pages. */
  #writePart(buffer: IoBuffer, at: number, length: number, offset: number): void {
    const { random } = this.#disk;
    if (random.chance(0.4)) return;
    const pages = Math.ceil((offset + length) / pageBytes) - Math.floor(offset / pageBytes);
    const end = (Math.floor(offset / pageBytes) + random.between(1, pages)) * pageBytes;
    this.#apply(buffer, at, Math.min(length, end - offset), offset);
  }

  #apply(buffer: IoBuffer, at: number, length: number, offset: number): void {
    if (length > 0) this.#checkUnsealed();
    if (this.#mayOnlyPunch) throw new Error(`${this.path} was unsealed, and is written to`);
    if (length > 0) this.inode.write(this.#disk.tick(), buffer.bytes, at, length, offset);
  }

  #punch(offset: number, length: number): boolean {
    if (!this.#disk.options.punches) return false;
    this.#process.failMetadata(this.path, "fallocate");
    if (!this.#mayOnlyPunch) this.#checkUnsealed();
    this.inode.punch(this.#disk.tick(), offset, length);
    return true;
  }

  #truncate(length: number): void {
    this.#process.failMetadata(this.path, "ftruncate");
    this.#checkUnsealed();
    this.inode.truncate(this.#disk.tick(), length);
  }

  /** Where a call of several pages is interrupted by others: at the end, mostly. */
  #split(offset: number, length: number): number {
    const { random } = this.#disk;
    const pages = Math.floor((offset + length - 1) / pageBytes) - Math.floor(offset / pageBytes);
    if (pages < 1 || random.chance(0.5)) return length;
    return (Math.floor(offset / pageBytes) + random.between(1, pages)) * pageBytes - offset;
  }

  #faulty(): boolean {
    return this.#disk.options.faulty(this.path);
  }

  #pool<T>(call: string, apply: () => T, part?: () => void): Promise<T> {
    this.#checkOpen();
    return this.#process.inPool(`${call} ${this.path}`, apply, part);
  }

  #check(buffer: IoBuffer, at: number, length: number, offset: number): void {
    this.#checkOpen();
    const whole = [at, length, offset].every((value) => Number.isSafeInteger(value) && value >= 0);
    if (!whole || at + length > buffer.length) {
      throw new RangeError(`${this.path}: ${length} bytes at ${offset}, buffer ${at} of ${buffer.length}`);
    }
  }

  /** A kernel takes writes through a descriptor from before the chmod; nobody may ask it to (durability rule 27). */
  #checkUnsealed(): void {
    if (this.inode.sealed) throw new Error(`${this.path} is sealed, and is changed`);
  }

  #checkWritable(): void {
    this.#checkOpen();
    if (!this.#writable) throw new IoError("EBADF", `${this.path} is open for reading only`);
  }

  #checkOpen(): void {
    if (this.#closed) throw new IoError("EBADF", `${this.path} is closed`);
  }
}
