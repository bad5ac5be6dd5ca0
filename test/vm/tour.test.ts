import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtemp, readFile, rm, symlink } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { debianImage } from "../support/debian-image.ts";
import { startHttpSource } from "../support/http-source.ts";
import { requireTool } from "../support/tools.ts";

const root = new URL("../..", import.meta.url).pathname;

/** The commands of the fenced block behind the marker `<!-- name -->`. */
async function commands(name: string): Promise<string> {
  const readme = await readFile(join(root, "README.md"), "utf8");
  const match = new RegExp(`<!-- ${name} -->\n+\`\`\`sh\n([^\`]*)\`\`\``).exec(readme);
  assert.ok(match, `README.md has no block behind <!-- ${name} -->`);
  return match[1];
}

void test("README's tour works line by line, from a web server to a detached volume", async (t) => {
  if (!requireTool(t, "qemu-io", "mmdebstrap", "root")) return;
  const { image } = await debianImage();
  const source = await startHttpSource({ content: image });
  const folder = await mkdtemp(join(tmpdir(), "ullage-tour-"));
  await symlink(join(root, "bin"), join(folder, "bin"));
  const server = spawn("sh", ["-c", `exec ${(await commands("tour: server")).trim()}`], {
    cwd: folder,
    stdio: ["ignore", "pipe", "inherit"],
  });
  const ended = new Promise<number | null>((resolve) => server.on("exit", resolve));
  try {
    await new Promise<void>((resolve, reject) => {
      let printed = "";
      server.stdout.on("data", (text: Buffer) => {
        printed += text.toString();
        if (printed.includes("Next, in another terminal")) resolve();
      });
      ended.then((code) => reject(new Error(`the server ended with ${code}: ${printed}`)), reject);
    });
    const tour = spawn("bash", ["-euxc", await commands("tour")], {
      cwd: folder,
      env: { ...process.env, IMAGE: source.url },
      stdio: ["ignore", "pipe", "pipe"],
    });
    let output = "";
    tour.stdout.on("data", (text: Buffer) => (output += text.toString()));
    tour.stderr.on("data", (text: Buffer) => (output += text.toString()));
    const code = await new Promise<number | null>((resolve) => tour.on("close", resolve));
    assert.equal(code, 0, output);
    for (const line of [
      "web1 is ready: 2G, NBD export 'web1'",
      "read 1048576/1048576 bytes at offset 1073741824",
      "detached: everything is here, the source is not needed any more",
      "web1@before is taken: NBD export 'web1@before', read-only",
      "1073741824 65536",
      "web1 is what web1@before was",
      "web1 is gone",
      "web2 is gone",
    ]) {
      assert.ok(output.includes(line), `the tour did not print '${line}':\n${output}`);
    }
    assert.match(output, /^ *0 +\d+[kMG] +local/m); // and here and there zeros, of which the file system may have none
    assert.match(output, /^1073741824 +1M +written/m);
  } finally {
    server.kill("SIGTERM");
    assert.equal(await ended, 0, "the server stops cleanly");
    await source.close();
    await rm(folder, { recursive: true, force: true });
  }
});
