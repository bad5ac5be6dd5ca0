import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { chmod, mkdir, readFile, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";
import { atEnd, temporaryDirectory } from "../daemon/support.ts";
import { requireTool } from "../support/tools.ts";

const execute = promisify(execFile);
const root = join(import.meta.dirname, "../..");

/**
 * Stands in for systemctl: starts, restarts and stops the one daemon there is. Ends when that has been done, as systemctl
 * does with a unit of type notify.
 */
const systemctl = `#!/bin/bash
set -eu
stop() {
  [ -e "$WORLD/pid" ] || return 0
  kill -TERM "$(cat "$WORLD/pid")"
  while kill -0 "$(cat "$WORLD/pid")" 2>/dev/null; do sleep 0.05; done
  rm "$WORLD/pid"
}
start() {
  : > "$WORLD/out" # what the last one said does not count
  ullage serve --data "$WORLD/data" --api "unix:$WORLD/data/api.sock" --nbd "unix:$WORLD/data/nbd.sock" \\
    > "$WORLD/out" 2>> "$WORLD/log" < /dev/null &
  echo $! > "$WORLD/pid"
  until grep -q "Ctrl-C stops it" "$WORLD/out"; do
    kill -0 "$(cat "$WORLD/pid")"
    sleep 0.05
  done
}
case $1 in
  stop) stop ;;
  start) start ;;
  restart) stop; start ;;
esac
`;

void test("docs/OPERATIONS.md: every command from the first restart on works, in the order of the page", async (t) => {
  if (!requireTool(t, "nbdcopy", "qemu-io", "curl", "jq")) return;
  const world = await temporaryDirectory(t);
  const bin = join(world, "bin");
  for (const name of ["bin", "backup"]) await mkdir(join(world, name));
  await symlink(join(root, "bin/ullage"), join(bin, "ullage"));
  // No second user and no registry here: `npm install` is what test/package does.
  const programs = { systemctl, runuser: '#!/bin/sh\nshift 3\nexec "$@"\n', npm: "#!/bin/sh\n" };
  for (const [name, text] of Object.entries(programs)) {
    await writeFile(join(bin, name), text);
    await chmod(join(bin, name), 0o755);
  }
  const env = {
    ...process.env,
    WORLD: world,
    PATH: `${bin}:${process.env.PATH}`,
    ULLAGE_API: `unix:${world}/data/api.sock`,
  };
  const bash = (script: string): Promise<{ stdout: string; stderr: string }> =>
    execute("bash", ["-euxo", "pipefail", "-c", script], { cwd: world, env, timeout: 120_000 });
  atEnd(t, () => bash("systemctl stop"));

  const page = await readFile(join(root, "docs/OPERATIONS.md"), "utf8");
  const commands = [...page.slice(page.indexOf("## Upgrades")).matchAll(/```sh\n([^`]*)```/g)].map(([, text]) =>
    text.replaceAll("/var/lib/ullage", `${world}/data`).replaceAll("/backup", `${world}/backup`),
  );
  assert.ok(commands.length >= 8, "the page has its commands");
  await writeFile(join(world, "image.raw"), Buffer.alloc(4 << 20, 9));
  const disk = `nbd+unix:///web1?socket=${world}/data/nbd.sock`;
  await bash(`systemctl start
    ullage volume create web1 --from image.raw
    ullage volume hydrate web1 --wait
    qemu-io -f raw -c 'write -P 0x5a 1M 1M' -c flush '${disk}'`);
  const { stdout } = await bash(commands.join("\n"));
  assert.match(stdout, /^ok: Ullage /m, "health");
  assert.match(stdout, /^ullage_health\{check="data"\} 0/m, "metrics");
  assert.match(stdout, /volumes? and \d+ blobs? checked: good/, "check");
  const copy = await readFile(join(world, "backup/web1.raw"));
  const expected = Buffer.alloc(4 << 20, 9).fill(0x5a, 1 << 20, 2 << 20);
  assert.ok(copy.equals(expected), "the backup of the disk");
  await bash("gzip -dc backup/web1.raw.gz | cmp - backup/web1.raw");

  // The moved copy: its source is gone, and yet everything is there.
  await bash(`systemctl stop; mv image.raw gone.raw; rm -rf data; mv backup/ullage data; systemctl start
    nbdcopy '${disk}' moved.raw`);
  assert.ok((await readFile(join(world, "moved.raw"))).equals(expected), "the moved data directory");
});
