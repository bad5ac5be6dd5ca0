import type { CatalogDatabase } from "./catalog-database.ts";

/** What goes between the main thread and the catalog's thread. Reply 0 tells whether the file could be opened. */
export interface CatalogStart {
  path: string;
}

export interface CatalogCall {
  /** from 1 */
  id: number;
  method: keyof CatalogDatabase;
  args: unknown[];
}

export interface CatalogReply {
  id: number;
  result?: unknown;
  error?: { message: string; code?: string; hint?: string | undefined; sqliteCode?: number | undefined };
}
