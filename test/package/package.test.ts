import assert from "node:assert/strict";
import { globSync } from "node:fs";
import { copyFile, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { requireTool } from "../support/tools.ts";
import { execute, installPackage, link, root, start, timeout, type Project } from "./support.ts";

const version = (JSON.parse(await readFile(join(root, "package.json"), "utf8")) as { version: string }).version;
const node = join(root, "bin/node");

/** One installation for all that follows, since packing takes seconds. */
void test("the package, installed from its tarball", async (t) => {
  const project = await installPackage(t);
  await t.test("carries what runs, and no sources, tests or tools", () => carries(project));
  await t.test("the command runs the built code", () => runsCommand(project));
  await t.test("ullage run serves a disk", (inner) => servesDisk(inner, project));
  await t.test("the dashboard's files and the daemon's workers are there", (inner) => runsDaemon(inner, project));
  await t.test("the example of the library type-checks against the declarations", () => typeChecks(project));
  await t.test("the example of the library runs, and serves what it wrote", (inner) => runsExample(inner, project));
  await t.test("every public symbol of the library has a doc comment", () => isDocumented(project));
});

async function carries({ directory }: Project): Promise<void> {
  const installed = join(directory, "node_modules/ullage");
  const top = (await readdir(installed)).sort();
  assert.deepEqual(top, ["LICENSE", "README.md", "bin", "dist", "docs", "examples", "package.json", "packaging"]);
  const built = await readdir(join(installed, "dist"), { recursive: true });
  assert.ok(built.includes("cli/main.js") && built.includes("index.d.ts"));
  assert.deepEqual(
    built.filter((name) => name.endsWith(".ts") && !name.endsWith(".d.ts")),
    [],
  );
  const served = globSync("**/public/**", { cwd: join(root, "src") });
  assert.deepEqual(globSync("**/public/**", { cwd: join(installed, "dist") }).sort(), served.sort());
}

async function runsCommand({ directory, command }: Project): Promise<void> {
  const { stdout } = await execute(command, ["--version"], { cwd: directory, timeout });
  assert.equal(stdout, `${version}\n`);
  const { stdout: help } = await execute(command, ["volume", "--help"], { cwd: directory, timeout });
  assert.match(help, /create .*<name>/);
  await assert.rejects(execute(command, ["bench"], { cwd: directory, timeout }), /in a checkout of Ullage/);
}

async function servesDisk(t: TestContext, { directory, command }: Project): Promise<void> {
  if (!requireTool(t, "nbdinfo")) return;
  const image = join(directory, "image.raw");
  await writeFile(image, Buffer.alloc(1_000_000, 7));
  const socket = join(directory, "run.sock");
  const running = start(command, ["run", image, "--nbd", `unix:${socket}`, "--json"], { cwd: directory });
  const printed = await running.firstWords("\n}\n");
  const { uri } = JSON.parse(printed) as { uri: string };
  const { stdout } = await execute("nbdinfo", ["--size", uri], { timeout });
  assert.equal(stdout.trim(), "1000448");
  await running.stop();
}

async function runsDaemon(t: TestContext, { directory, command }: Project): Promise<void> {
  if (!requireTool(t, "curl")) return;
  const api = join(directory, "api.sock");
  const args = ["serve", "--data", join(directory, "data"), "--api", `unix:${api}`, "--nbd", "127.0.0.1:0", "--json"];
  const daemon = start(command, args, { cwd: directory });
  await daemon.firstWords("\n}\n");
  const cli = (...more: string[]): Promise<{ stdout: string }> =>
    execute(command, [...more, "--api", `unix:${api}`], { cwd: directory, timeout });
  await cli("volume", "create", "v", "--size", "1M");
  assert.match((await cli("volume", "ls")).stdout, /^v +1M +ok/m);
  const { stdout } = await execute("curl", ["-sSf", "--unix-socket", api, "http://localhost/openapi.json"], {
    timeout,
  });
  assert.equal((JSON.parse(stdout) as { openapi: string }).openapi, "3.1.0");
  await daemon.stop();
}

async function typeChecks({ directory }: Project): Promise<void> {
  await link(join(directory, "node_modules"), ["@types/node", "undici-types"]);
  await writeFile(join(directory, "package.json"), JSON.stringify({ type: "module", private: true }));
  await copyFile(join(root, "examples/library.ts"), join(directory, "library.ts"));
  const compilerOptions = {
    target: "es2024",
    lib: ["es2024", "esnext.disposable"],
    module: "nodenext",
    types: ["node"],
    strict: true,
    noEmit: true,
    exactOptionalPropertyTypes: true,
    // The declarations of the package themselves are checked, too.
    skipLibCheck: false,
  };
  await writeFile(join(directory, "tsconfig.json"), JSON.stringify({ compilerOptions, files: ["library.ts"] }));
  const compiler = join(root, "node_modules/typescript/bin/tsc");
  const { stdout } = await execute("sh", [node, compiler, "-p", directory], { timeout }).catch(
    (error: { stdout: string }) => error,
  );
  assert.equal(stdout, "");
  await writeFile(
    join(directory, "library.ts"),
    `${await readFile(join(directory, "library.ts"), "utf8")}
await ullage.createVolume({ nam: "x" });\n`,
  );
  await assert.rejects(execute("sh", [node, compiler, "-p", directory], { timeout }), { stdout: /TS2561: .*'nam'/ });
}

async function runsExample(t: TestContext, { directory }: Project): Promise<void> {
  if (!requireTool(t, "nbdcopy")) return;
  await copyFile(join(root, "examples/library.ts"), join(directory, "library.ts"));
  const socket = join(directory, "library.sock");
  const args = [node, "library.ts", join(directory, "library-data"), `unix:${socket}`];
  const example = start("sh", args, { cwd: directory });
  assert.match(await example.firstWords("\n"), /^serving nbd\+unix:/);
  const copy = join(directory, "copy.raw");
  await execute("nbdcopy", [`nbd+unix:///scratch?socket=${socket}`, copy], { timeout });
  assert.equal((await readFile(copy)).subarray(0, 28).toString(), "written through the library\n");
  await example.stop();
}

/** What index.d.ts exports, and the methods of `Ullage`. */
async function isDocumented({ directory }: Project): Promise<void> {
  const dist = join(directory, "node_modules/ullage/dist");
  const index = await readFile(join(dist, "index.d.ts"), "utf8");
  const undocumented: string[] = [];
  const exported = new Set<string>();
  for (const [, list, module] of index.matchAll(/export (?:type )?(\{[^}]*\}|\*) from "([^"]*)"/g)) {
    const text = await readFile(join(dist, module).replace(/\.[tj]s$/, ".d.ts"), "utf8");
    const all = [...text.matchAll(/^export (?:declare )?(?:interface|type) (\w+)/gm)].map(([, name]) => name);
    for (const name of list === "*" ? all : namesIn(list)) {
      exported.add(name);
      const declared = new RegExp(`(\\*/\n)?export (declare )?(class|interface|type|const|function) ${name}\\b`).exec(
        text,
      );
      assert.ok(declared, `${name} is declared in ${module}`);
      if (declared[1] === undefined) undocumented.push(name);
    }
  }
  assert.ok(exported.size > 20);
  const ullage = await readFile(join(dist, "daemon/ullage.d.ts"), "utf8");
  const used = [...ullage.matchAll(/^import .*(\{[^}]*\})/gm)].flatMap(([, list]) => namesIn(list));
  const missing = used.filter((name) => !exported.has(name));
  assert.deepEqual(missing, [], "what appears in the signatures of Ullage is exported by src/index.ts");
  for (const [, above, name] of ullage.matchAll(/^(.*)\n {4}(?:static |get )?(\w+)\(.*;$/gm)) {
    if (!above.endsWith("*/") && name !== "constructor") undocumented.push(`Ullage.${name}`);
  }
  assert.deepEqual(undocumented, []);
}

/** Of `{ A, type B }`. */
function namesIn(list: string): string[] {
  return [...list.matchAll(/(\w+)\s*[,}]/g)].map(([, name]) => name);
}
