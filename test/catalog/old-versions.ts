/** What each version of the catalog made of an empty file, and what it may have written since: never to be changed. */
const volumes1 = `
  CREATE TABLE volumes (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, state TEXT NOT NULL, size INTEGER NOT NULL, source TEXT, format TEXT,
    blob_id TEXT, settings TEXT NOT NULL, hydration TEXT NOT NULL, created_at TEXT NOT NULL, request_key TEXT,
    request_digest TEXT
  ) STRICT, WITHOUT ROWID;
  CREATE UNIQUE INDEX volumes_by_name ON volumes (name) WHERE state <> 'deleting';
  CREATE UNIQUE INDEX volumes_by_request_key ON volumes (request_key)
    WHERE request_key IS NOT NULL AND state <> 'deleting';
  INSERT INTO volumes VALUES ('${"1".repeat(32)}', 'web', 'ready', 4096, NULL, NULL, NULL,
    '{"hydrate":"auto","sync":"normal","remoteAfterPowerLoss":"refuse"}',
    '{"wanted":true,"paused":false,"rate":null,"priority":0}', '2026-01-02T03:04:05.678Z', 'volume key', 'digest');
`;
const snapshots2 = `
  CREATE TABLE snapshots (
    id TEXT PRIMARY KEY, volume_id TEXT NOT NULL, name TEXT, state TEXT NOT NULL, size INTEGER NOT NULL,
    created_at TEXT NOT NULL
  ) STRICT, WITHOUT ROWID;
  CREATE UNIQUE INDEX snapshots_by_name ON snapshots (volume_id, name) WHERE name IS NOT NULL AND state <> 'deleting';
  INSERT INTO snapshots VALUES ('${"2".repeat(32)}', '${"1".repeat(32)}', 'monday', 'ready', 4096, '2026-01-03T03:04:05.678Z');
`;
const exports3 = `
  ALTER TABLE volumes ADD COLUMN origin TEXT;
  CREATE TABLE exports (
    id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, volume_id TEXT NOT NULL, snapshot_id TEXT, options TEXT NOT NULL,
    created_at TEXT NOT NULL, request_key TEXT, request_digest TEXT
  ) STRICT, WITHOUT ROWID;
  CREATE UNIQUE INDEX exports_by_request_key ON exports (request_key) WHERE request_key IS NOT NULL;
  INSERT INTO exports VALUES ('${"3".repeat(32)}', 'boot', '${"1".repeat(32)}', '${"2".repeat(32)}',
    '{"readOnly":true,"description":null}', '2026-01-04T03:04:05.678Z', 'export key', 'digest');
`;
const standing4 = `ALTER TABLE volumes ADD COLUMN standing TEXT;`;

/** SQL that makes a file of version n + 1. */
export const oldVersions: readonly string[] = [volumes1, snapshots2, exports3, standing4].map(
  (_, index, steps) =>
    `${steps.slice(0, index + 1).join("")} PRAGMA application_id = 1433168993; PRAGMA user_version = ${index + 1};`,
);
