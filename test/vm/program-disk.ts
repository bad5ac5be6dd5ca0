/** A disk with the program, and the scripts of this folder, for a guest that runs it. */
import { execFile } from "node:child_process";
import { cp, glob, mkdir, truncate, writeFile } from "node:fs/promises";
import { join, relative } from "node:path";
import { promisify } from "node:util";

const root = new URL("../..", import.meta.url).pathname;
const size = 384 * 2 ** 20;
/** Headers and manuals of Node: large, and nothing that runs needs them. */
const leftOut = /\/node-linux-[^/]+\/(?!bin|package\.json)[^/]+$/;

/**
 * @param folder empty; the disk is `program.raw` in it
 * @returns the disk's path: ext4 without partitions, with `bin`, `dist` (an emulated processor starts
 *   it in half the time that it needs for TypeScript) and what they need, and `test/vm` as `vm`
 */
export async function makeProgramDisk(folder: string): Promise<string> {
  const content = join(folder, "program");
  await mkdir(content);
  const run = promisify(execFile);
  // It ends with 1 when anything about the tree is odd, and has printed it all the same.
  const listing = run("npm", ["ls", "--omit=dev", "--all", "--parseable"], { cwd: root }).catch(
    (error: { stdout: string }) => error,
  );
  const packages = (await listing).stdout.split("\n").filter((path) => path.includes("/node_modules/"));
  for (const path of packages) {
    const filter = (source: string): boolean => !leftOut.test(source);
    await cp(path, join(content, relative(root, path)), { recursive: true, filter });
  }
  for (const name of ["bin", "package.json"]) await cp(join(root, name), join(content, name), { recursive: true });
  const compiler = join(root, "node_modules/typescript/bin/tsc");
  const dist = join(content, "dist");
  await run(process.execPath, [
    compiler,
    "-p",
    join(root, "tsconfig.build.json"),
    "--outDir",
    dist,
    "--declaration",
    "false",
  ]);
  for await (const name of glob("**/public", { cwd: join(root, "src") })) {
    await cp(join(root, "src", name), join(dist, name), { recursive: true });
  }
  await cp(join(root, "test/vm"), join(content, "vm"), { recursive: true });
  const disk = join(folder, "program.raw");
  await writeFile(disk, "");
  await truncate(disk, size);
  await run("mkfs.ext4", ["-q", "-F", "-d", content, disk]);
  return disk;
}
