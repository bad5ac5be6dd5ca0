/**
 * Builds dist/, what the package carries instead of src/: JavaScript and declarations, and the files that are served as
 * they are. `npm pack` runs it; nothing in a checkout uses dist/.
 */
import { spawnSync } from "node:child_process";
import { cpSync, globSync, rmSync } from "node:fs";

process.chdir(new URL("..", import.meta.url).pathname);
rmSync("dist", { recursive: true, force: true });
const compiler = new URL("../node_modules/typescript/bin/tsc", import.meta.url).pathname;
const { status } = spawnSync(process.execPath, [compiler, "-p", "tsconfig.build.json"], {
  stdio: ["ignore", "inherit", "inherit"],
});
if (status === 0) {
  for (const folder of globSync("src/**/public")) {
    cpSync(folder, folder.replace(/^src/, "dist"), { recursive: true });
  }
}
process.exitCode = status ?? 1;
