import { chmodSync, closeSync, existsSync, openSync } from "node:fs";
import { DatabaseSync, type StatementSync } from "node:sqlite";
import { UllageError } from "../base/errors.ts";
import type {
  ExportOptions,
  ExportRecord,
  HydrationWish,
  Origin,
  RecordState,
  Settings,
  SnapshotChange,
  SnapshotRecord,
  SnapshotState,
  Standing,
  VolumeChange,
  VolumeRecord,
} from "./metadata-store.ts";
import { defaultSettings } from "./metadata-store.ts";

/*
 * catalog.db: the tables and the statements on them. Synchronous, and with synchronous=FULL every change waits for the
 * disk, so this class only ever runs on the catalog's own thread (catalog-worker.ts).
 */

/** "Ulla": marks the file as ours among SQLite files. */
const applicationId = 0x556c6c61;
/** Raised with every change of the tables; older files are upgraded in `open`, newer ones refused. */
export const schemaVersion = 5;

/** What version n + 1 has that version n has not; a new file takes all steps. */
const schemaSteps = [
  `
  CREATE TABLE volumes (
    id             TEXT PRIMARY KEY,
    name           TEXT NOT NULL,
    state          TEXT NOT NULL,
    size           INTEGER NOT NULL,
    source         TEXT,
    format         TEXT,
    blob_id        TEXT,
    settings       TEXT NOT NULL,
    hydration      TEXT NOT NULL,
    created_at     TEXT NOT NULL,
    request_key    TEXT,
    request_digest TEXT
  ) STRICT, WITHOUT ROWID;
  -- a volume on its way out no longer holds its name
  CREATE UNIQUE INDEX volumes_by_name ON volumes (name) WHERE state <> 'deleting';
  CREATE UNIQUE INDEX volumes_by_request_key ON volumes (request_key)
    WHERE request_key IS NOT NULL AND state <> 'deleting';
`,
  `
  CREATE TABLE snapshots (
    id         TEXT PRIMARY KEY,
    volume_id  TEXT NOT NULL,
    name       TEXT,
    state      TEXT NOT NULL,
    size       INTEGER NOT NULL,
    created_at TEXT NOT NULL
  ) STRICT, WITHOUT ROWID;
  CREATE UNIQUE INDEX snapshots_by_name ON snapshots (volume_id, name) WHERE name IS NOT NULL AND state <> 'deleting';
`,
  `
  ALTER TABLE volumes ADD COLUMN origin TEXT;
  CREATE TABLE exports (
    id             TEXT PRIMARY KEY,
    name           TEXT NOT NULL UNIQUE,
    volume_id      TEXT NOT NULL,
    snapshot_id    TEXT,
    options        TEXT NOT NULL,
    created_at     TEXT NOT NULL,
    request_key    TEXT,
    request_digest TEXT
  ) STRICT, WITHOUT ROWID;
  CREATE UNIQUE INDEX exports_by_request_key ON exports (request_key) WHERE request_key IS NOT NULL;
`,
  `
  ALTER TABLE volumes ADD COLUMN standing TEXT;
`,
  `
  ALTER TABLE snapshots ADD COLUMN request_key TEXT;
  ALTER TABLE snapshots ADD COLUMN request_digest TEXT;
  CREATE UNIQUE INDEX snapshots_by_request_key ON snapshots (request_key)
    WHERE request_key IS NOT NULL AND state <> 'deleting';
`,
];

/** Column of each field that can change. */
const columns: Record<keyof VolumeChange, string> = {
  name: "name",
  state: "state",
  size: "size",
  format: "format",
  blobId: "blob_id",
  settings: "settings",
  hydration: "hydration",
  standing: "standing",
};

export class CatalogDatabase {
  readonly #database: DatabaseSync;
  readonly #insert: StatementSync;
  readonly #page: StatementSync;
  readonly #note: StatementSync;
  readonly #delete: StatementSync;

  /** Creates the file when it is missing. @throws UllageError `catalog-version`, `catalog-foreign`, `catalog-damaged` */
  constructor(path: string) {
    this.#database = openDatabase(path);
    this.#insert = this.#database.prepare(`INSERT INTO volumes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`);
    this.#page = this.#database.prepare(`SELECT * FROM volumes WHERE id > ? ORDER BY id LIMIT ?`);
    this.#note = this.#database.prepare(`UPDATE volumes SET standing = ? WHERE id = ?`);
    this.#delete = this.#database.prepare(`DELETE FROM volumes WHERE id = ?`);
  }

  insertVolume(volume: VolumeRecord): void {
    if (this.#has(volume.id)) return;
    this.#insert.run(
      volume.id,
      volume.name,
      volume.state,
      volume.size,
      volume.source,
      volume.format,
      volume.blobId,
      JSON.stringify(volume.settings),
      JSON.stringify(volume.hydration),
      volume.createdAt,
      volume.requestKey,
      volume.requestDigest,
      volume.origin === null ? null : JSON.stringify(volume.origin),
      volume.standing === null ? null : JSON.stringify(volume.standing),
    );
  }

  updateVolume(id: string, change: VolumeChange): boolean {
    const fields = Object.keys(change) as (keyof VolumeChange)[];
    if (fields.length === 0) return this.#has(id);
    const values = fields.map((field) => {
      const value = change[field]!;
      return typeof value === "object" && value !== null ? JSON.stringify(value) : value;
    });
    const assignments = fields.map((field) => `${columns[field]} = ?`).join(", ");
    return this.#database.prepare(`UPDATE volumes SET ${assignments} WHERE id = ?`).run(...values, id).changes !== 0;
  }

  /** Without a wait for the disk: what it says is compared with the volume's files before it is believed. */
  noteStanding(id: string, standing: Standing): void {
    this.#database.exec("PRAGMA synchronous = NORMAL");
    try {
      this.#note.run(JSON.stringify(standing), id);
    } finally {
      this.#database.exec("PRAGMA synchronous = FULL");
    }
  }

  deleteVolume(id: string): void {
    this.#delete.run(id);
  }

  insertSnapshot(snapshot: SnapshotRecord): void {
    const { id, volumeId, name, state, size, createdAt, requestKey, requestDigest } = snapshot;
    if (this.#has(id, "snapshots")) return;
    this.#database
      .prepare(`INSERT INTO snapshots VALUES (?, ?, ?, ?, ?, ?, ?, ?)`)
      .run(id, volumeId, name, state, size, createdAt, requestKey, requestDigest);
  }

  updateSnapshot(id: string, change: SnapshotChange): boolean {
    const assignment =
      "state" in change ? "state = 'deleting'" : "name = NULL, request_key = NULL, request_digest = NULL";
    return this.#database.prepare(`UPDATE snapshots SET ${assignment} WHERE id = ?`).run(id).changes !== 0;
  }

  deleteSnapshot(id: string): void {
    this.#database.prepare(`DELETE FROM snapshots WHERE id = ?`).run(id);
  }

  listSnapshots(afterId: string, limit: number): SnapshotRecord[] {
    const page = this.#database.prepare(`SELECT * FROM snapshots WHERE id > ? ORDER BY id LIMIT ?`);
    return page.all(afterId, limit).map(asSnapshot);
  }

  insertExport(added: ExportRecord): void {
    if (this.#has(added.id, "exports")) return;
    const { id, name, volumeId, snapshotId, options, createdAt, requestKey, requestDigest } = added;
    this.#database
      .prepare(`INSERT INTO exports VALUES (?, ?, ?, ?, ?, ?, ?, ?)`)
      .run(id, name, volumeId, snapshotId, JSON.stringify(options), createdAt, requestKey, requestDigest);
  }

  deleteExport(id: string): void {
    this.#database.prepare(`DELETE FROM exports WHERE id = ?`).run(id);
  }

  listExports(afterId: string, limit: number): ExportRecord[] {
    const page = this.#database.prepare(`SELECT * FROM exports WHERE id > ? ORDER BY id LIMIT ?`);
    return page.all(afterId, limit).map(asExport);
  }

  listVolumes(afterId: string, limit: number): VolumeRecord[] {
    return this.#page.all(afterId, limit).map(asVolume);
  }

  /** Leaves one file: the write-ahead log is merged and removed. */
  close(): void {
    this.#database.close();
  }

  #has(id: string, table: "volumes" | "snapshots" | "exports" = "volumes"): boolean {
    return this.#database.prepare(`SELECT 1 FROM ${table} WHERE id = ?`).get(id) !== undefined;
  }
}

function openDatabase(path: string): DatabaseSync {
  keepPrivate(path);
  const database = new DatabaseSync(path);
  try {
    const found = pragma(database, "user_version");
    const owner = pragma(database, "application_id");
    const fresh = found === 0 && owner === 0 && isEmpty(database);
    if (!fresh && owner !== applicationId) {
      throw new UllageError("catalog-foreign", `${path} is a database of some other program`, {
        hint: "choose another data directory, or move that file away",
      });
    }
    if (found > schemaVersion) {
      throw new UllageError(
        "catalog-version",
        `${path} has format version ${found}, and this Ullage reads versions up to ${schemaVersion}`,
        { hint: "use the newer Ullage that wrote it" },
      );
    }
    database.exec("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 2000");
    upgrade(database, found);
    return database;
  } catch (error) {
    database.close();
    if (error instanceof UllageError) throw error;
    throw new UllageError("catalog-damaged", `${path} cannot be read`, {
      cause: error,
      hint: "move it away and run `ullage repair DATA`, which rebuilds it from the volumes",
    });
  }
}

/** Addresses of sources may hold secrets. SQLite gives the files beside the database its mode. */
function keepPrivate(path: string): void {
  closeSync(openSync(path, "a", 0o600));
  for (const file of [path, `${path}-wal`, `${path}-shm`]) if (existsSync(file)) chmodSync(file, 0o600);
}

/** One transaction: an interrupted upgrade leaves the older version. */
function upgrade(database: DatabaseSync, version: number): void {
  if (version === schemaVersion) return;
  database.exec(
    `BEGIN IMMEDIATE; ${schemaSteps.slice(version).join("")}
     PRAGMA application_id = ${applicationId}; PRAGMA user_version = ${schemaVersion}; COMMIT`,
  );
}

function isEmpty(database: DatabaseSync): boolean {
  return database.prepare("SELECT 1 FROM sqlite_schema LIMIT 1").get() === undefined;
}

function pragma(database: DatabaseSync, name: string): number {
  return Number(Object.values(database.prepare(`PRAGMA ${name}`).get()!)[0]);
}

function asVolume(row: Record<string, unknown>): VolumeRecord {
  return {
    id: row["id"] as string,
    name: row["name"] as string,
    state: row["state"] as RecordState,
    size: row["size"] as number,
    source: row["source"] as string | null,
    format: row["format"] as string | null,
    blobId: row["blob_id"] as string | null,
    // Rows of earlier versions lack what was added since.
    settings: { ...defaultSettings, ...(JSON.parse(row["settings"] as string) as Partial<Settings>) },
    hydration: JSON.parse(row["hydration"] as string) as HydrationWish,
    createdAt: row["created_at"] as string,
    requestKey: row["request_key"] as string | null,
    requestDigest: row["request_digest"] as string | null,
    origin: row["origin"] === null ? null : (JSON.parse(row["origin"] as string) as Origin),
    standing: row["standing"] === null ? null : (JSON.parse(row["standing"] as string) as Standing),
  };
}

function asExport(row: Record<string, unknown>): ExportRecord {
  return {
    id: row["id"] as string,
    name: row["name"] as string,
    volumeId: row["volume_id"] as string,
    snapshotId: row["snapshot_id"] as string | null,
    options: JSON.parse(row["options"] as string) as ExportOptions,
    createdAt: row["created_at"] as string,
    requestKey: row["request_key"] as string | null,
    requestDigest: row["request_digest"] as string | null,
  };
}

function asSnapshot(row: Record<string, unknown>): SnapshotRecord {
  return {
    id: row["id"] as string,
    volumeId: row["volume_id"] as string,
    name: row["name"] as string | null,
    state: row["state"] as SnapshotState,
    size: row["size"] as number,
    createdAt: row["created_at"] as string,
    requestKey: row["request_key"] as string | null,
    requestDigest: row["request_digest"] as string | null,
  };
}
