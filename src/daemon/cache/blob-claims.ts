import { join } from "node:path";
import { CorruptionError, describeError } from "../../base/errors.ts";
import type { FileSystem } from "../../base/file-system.ts";
import { replaceFile } from "../../blob/durable-file.ts";

const NAME = "blob-claims.json";
const FORMAT = "ullage-blob-claims";
const VERSION = 1;

/**
 * Which volumes of other processes were made from which blobs of this cache: <data>/blob-claims.json. A claim is durable
 * before the blob is named to whoever makes the volume, and goes after the volume has: a crash in between leaves a claim too
 * many, never one too few.
 */
export class BlobClaims {
  readonly #fs: FileSystem;
  readonly #dataDir: string;
  /** Volume ids by blob id; empty: there were some. */
  readonly #claims: Map<string, Set<string>>;
  #writing: Promise<void> = Promise.resolve();

  private constructor(fs: FileSystem, dataDir: string, claims: Map<string, Set<string>>) {
    this.#fs = fs;
    this.#dataDir = dataDir;
    this.#claims = claims;
  }

  /** @throws CorruptionError */
  static async open(fs: FileSystem, dataDir: string): Promise<BlobClaims> {
    const path = join(dataDir, NAME);
    const claims = new Map<string, Set<string>>();
    if (await fs.exists(path)) {
      try {
        const raw = JSON.parse((await fs.readFile(path)).toString("utf8")) as {
          format: string;
          version: number;
          claims: Record<string, string[]>;
        };
        if (raw.format !== FORMAT || raw.version !== VERSION) throw new Error("it is of another format");
        for (const [blob, volumes] of Object.entries(raw.claims)) claims.set(blob, new Set(volumes));
      } catch (error) {
        throw new CorruptionError(`${path} can't be read: ${describeError(error)}`);
      }
    }
    return new BlobClaims(fs, dataDir, claims);
  }

  /** Whether volumes were made from it by way of this manager, and none needs it any more. */
  isGivenUp(blobId: string): boolean {
    return this.#claims.get(blobId)?.size === 0;
  }

  /** Durable when it resolves. */
  async add(blobId: string, volumeId: string): Promise<void> {
    const volumes = this.#claims.get(blobId) ?? new Set();
    this.#claims.set(blobId, volumes);
    if (volumes.has(volumeId)) return this.#writing;
    volumes.add(volumeId);
    await this.#write();
  }

  /** Ends what the volume claims, whatever that is. @returns these blobs */
  async remove(volumeId: string): Promise<string[]> {
    const had: string[] = [];
    for (const [blob, volumes] of this.#claims) if (volumes.delete(volumeId)) had.push(blob);
    if (had.length > 0) await this.#write();
    return had;
  }

  async forgetBlob(blobId: string): Promise<void> {
    if (this.#claims.delete(blobId)) await this.#write();
  }

  #write(): Promise<void> {
    const writing = this.#writing
      .catch(() => undefined)
      .then(() => {
        const claims = Object.fromEntries(Array.from(this.#claims, ([blob, volumes]) => [blob, [...volumes]]));
        const text = JSON.stringify({ format: FORMAT, version: VERSION, claims });
        return replaceFile(this.#fs, this.#dataDir, NAME, Buffer.from(text));
      });
    this.#writing = writing;
    writing.catch(() => undefined); // whoever asked for it hears of it
    return writing;
  }
}
