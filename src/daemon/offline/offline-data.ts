import { randomBytes } from "node:crypto";
import { systemClock } from "../../base/clock.ts";
import { UllageError } from "../../base/errors.ts";
import { isId } from "../../base/ids.ts";
import { realFileSystem } from "../../base/real-file-system.ts";
import type { MetadataStore, SnapshotRecord, VolumeRecord } from "../../catalog/metadata-store.ts";
import { SqliteMetadataStore } from "../../catalog/sqlite-metadata-store.ts";
import type { VolumeEnvironment } from "../../volume/types.ts";
import { DataDirectory } from "../directory/data-directory.ts";
import { runtimeDirectory } from "../directory/runtime-directory.ts";
import { allExports, allRows, allSnapshots } from "../directory/start-sweep.ts";

/** A data directory that no daemon has, for `check` and `repair`. Locked like a daemon's (durability rule 20). */
export class OfflineData {
  readonly directory: DataDirectory;
  readonly env: VolumeEnvironment;
  /** Why there is no catalog to go by. */
  readonly catalogProblem: string | undefined;
  readonly rows: readonly VolumeRecord[];
  readonly snapshots: readonly SnapshotRecord[];
  /** Names that volumes can't have. */
  readonly exportNames: readonly string[];
  /** what lies below volumes/ and blobs/ */
  readonly volumeIds: readonly string[];
  readonly blobIds: readonly string[];
  #store: SqliteMetadataStore | undefined;

  private constructor(
    directory: DataDirectory,
    env: VolumeEnvironment,
    catalog: FoundCatalog,
    found: Pick<OfflineData, "rows" | "snapshots" | "exportNames" | "volumeIds" | "blobIds">,
  ) {
    this.directory = directory;
    this.env = env;
    this.#store = catalog.store;
    this.catalogProblem = catalog.problem;
    this.rows = found.rows;
    this.snapshots = found.snapshots;
    this.exportNames = found.exportNames;
    this.volumeIds = found.volumeIds;
    this.blobIds = found.blobIds;
  }

  /** @throws UllageError `data-missing`, `data-in-use`, `data-foreign`, `catalog-version` */
  static async open(dataDir: string, command: "check" | "repair"): Promise<OfflineData> {
    const fs = realFileSystem;
    const directory = await DataDirectory.open(fs, dataDir, { command, create: false });
    try {
      const env = {
        fs,
        clock: systemClock,
        randomBytes,
        dataDir: directory.path,
        runtimeDir: await runtimeDirectory(),
        log: () => undefined,
      };
      const catalog = await openCatalog(directory);
      return new OfflineData(directory, env, catalog, {
        rows: catalog.store === undefined ? [] : await allRows(catalog.store),
        snapshots: catalog.store === undefined ? [] : await allSnapshots(catalog.store),
        exportNames: catalog.store === undefined ? [] : (await allExports(catalog.store)).map(({ name }) => name),
        volumeIds: (await fs.readdir(directory.below("volumes"))).filter(isId).sort(),
        blobIds: (await fs.readdir(directory.below("blobs"))).filter(isId).sort(),
      });
    } catch (error) {
      await directory.close();
      throw error;
    }
  }

  /** The catalog. @throws when there is none */
  get store(): MetadataStore {
    if (this.#store === undefined)
      throw new UllageError("catalog-damaged", this.catalogProblem ?? "there is no catalog");
    return this.#store;
  }

  /** Begins a new catalog where there is none. */
  async beginCatalog(): Promise<void> {
    this.#store = await SqliteMetadataStore.open(this.directory.below("catalog.db"));
    await this.env.fs.syncDirectory(this.directory.path);
  }

  async close(): Promise<void> {
    await this.#store?.close();
    await this.directory.close();
  }
}

interface FoundCatalog {
  store: SqliteMetadataStore | undefined;
  problem: string | undefined;
}

async function openCatalog(directory: DataDirectory): Promise<FoundCatalog> {
  const path = directory.below("catalog.db");
  if (!(await realFileSystem.exists(path))) return { store: undefined, problem: `${path} is missing` };
  try {
    return { store: await SqliteMetadataStore.open(path), problem: undefined };
  } catch (error) {
    if (error instanceof UllageError && error.code === "catalog-damaged") {
      return { store: undefined, problem: error.message };
    }
    throw error;
  }
}
