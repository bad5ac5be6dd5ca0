import { createHash } from "node:crypto";
import { readFileSync, readdirSync } from "node:fs";
import { findPackageJSON } from "node:module";
import { dirname, extname, join } from "node:path";

/** One file of the dashboard, ready to be sent. */
export interface StaticFile {
  body: Buffer;
  type: string;
  /** a strong validator, with its quotes */
  etag: string;
}

const publicFolder = join(import.meta.dirname, "public");

const types: Record<string, string> = {
  ".html": "text/html; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".svg": "image/svg+xml",
};

interface Library {
  /** what modules import */
  specifier: string;
  package: string;
  /** the ES module inside the package */
  file: string;
  /** the package whose dependency it is; default: ours */
  of?: string;
}

const libraries: readonly Library[] = [
  { specifier: "preact", package: "preact", file: "dist/preact.mjs" },
  { specifier: "preact/hooks", package: "preact", file: "hooks/dist/hooks.mjs" },
  { specifier: "htm", package: "htm", file: "dist/htm.mjs" },
  { specifier: "htm/preact", package: "htm", file: "preact/index.mjs" },
  { specifier: "@preact/signals", package: "@preact/signals", file: "dist/signals.mjs" },
  {
    specifier: "@preact/signals-core",
    package: "@preact/signals-core",
    file: "dist/signals-core.mjs",
    of: "@preact/signals",
  },
];

/**
 * Every file of the dashboard by its path below the server's root: `dashboard/index.html`, `dashboard/main.js`,
 * `dashboard/vendor/preact.js`, … Nothing else is ever read for a request. There is no build step: the libraries are
 * served as they are, but for their imports by name, which become paths (an import map would have to be inline, and
 * the page's policy forbids inline scripts).
 */
export function readStaticFiles(): Map<string, StaticFile> {
  const files = new Map<string, StaticFile>();
  for (const name of readdirSync(publicFolder)) {
    const type = types[extname(name)];
    if (type === undefined) continue;
    const content = readFileSync(join(publicFolder, name));
    files.set(`dashboard/${name}`, staticFile(name.endsWith(".js") ? linked(content, "./vendor/") : content, type));
  }
  for (const library of libraries) {
    const content = readFileSync(libraryPath(library));
    files.set(`dashboard/vendor/${fileName(library.specifier)}`, staticFile(linked(content, "./"), types[".js"]));
  }
  return files;
}

function staticFile(body: Buffer, type: string): StaticFile {
  return { body, type, etag: `"${createHash("sha256").update(body).digest("base64url").slice(0, 22)}"` };
}

function libraryPath(library: Library): string {
  const parent = library.of === undefined ? import.meta.url : packageJson(library.of, import.meta.url);
  return join(dirname(packageJson(library.package, parent)), library.file);
}

function packageJson(name: string, base: string): string {
  const path = findPackageJSON(name, base);
  if (path === undefined) throw new Error(`the package ${name} is not installed`);
  return path;
}

/** A module whose imports by name are paths into `folder`; without the address of its source map, which isn't served. */
function linked(content: Buffer, folder: string): Buffer {
  const text = content
    .toString()
    .replaceAll(/(\b(?:from|import)\s*)"([^"./][^"]*)"/g, (all, keyword: string, specifier: string) =>
      libraries.some((library) => library.specifier === specifier)
        ? `${keyword}"${folder}${fileName(specifier)}"`
        : all,
    )
    .replace(/\/\/# sourceMappingURL=\S+\s*$/, "");
  return Buffer.from(text);
}

function fileName(specifier: string): string {
  return `${specifier.replace("@", "").replaceAll("/", "-")}.js`;
}
