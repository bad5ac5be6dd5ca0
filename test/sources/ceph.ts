import { spawnSync } from "node:child_process";
import { appendFile, mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { randomUUID } from "node:crypto";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { freePort } from "./processes.ts";

/*
 * A Ceph cluster of this machine's own, as small as it gets: one monitor, one manager, two OSDs that keep their objects in
 * memory, and the gateway that speaks S3. Its daemons detach themselves; they are known by their pid files.
 */

const commandTimeoutMs = 60_000;
const upTimeoutMs = 120_000;

export interface Ceph extends AsyncDisposable {
  /** Of the gateway: `http://127.0.0.1:PORT` */
  readonly origin: string;
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
  /** Kills an OSD; the other one has everything, too. */
  killOsd(index: number): Promise<void>;
}

export async function startCeph(): Promise<Ceph> {
  const dir = await mkdtemp(join(tmpdir(), "ullage-ceph-"));
  const conf = join(dir, "ceph.conf");
  const [monPort, rgwPort] = [await freePort(), await freePort()];
  const run = (command: string, args: string[], input = ""): string => {
    const { status, stdout, stderr, error } = spawnSync(command, args, {
      encoding: "utf8",
      input,
      timeout: commandTimeoutMs,
      env: { ...process.env, CEPH_CONF: conf },
    });
    if (status === 0) return stdout.trim();
    throw new Error(`${command} ${args.join(" ")} failed: ${error?.message ?? stderr.slice(-2000)}`);
  };
  const pidOf = async (name: string): Promise<number | undefined> => {
    const text = await readFile(join(dir, "run", `${name}.pid`), "utf8").catch(() => "");
    return text === "" ? undefined : Number(text);
  };
  const kill = async (name: string, signal: "SIGTERM" | "SIGKILL"): Promise<void> => {
    const pid = await pidOf(name);
    if (pid === undefined || !(await isCeph(pid, conf))) return;
    process.kill(pid, signal);
    for (let n = 0; n < 100 && (await isCeph(pid, conf)); n++) await sleep(50);
    if (await isCeph(pid, conf)) process.kill(pid, "SIGKILL");
  };
  const stop = async (): Promise<void> => {
    await Promise.all(["client.rgw", "osd.0", "osd.1", "mgr.x", "mon.a"].map((name) => kill(name, "SIGKILL")));
    await rm(dir, { recursive: true, force: true });
  };

  try {
    for (const name of ["run", "log", "mon/a", "mgr/x", "osd/0", "osd/1", "rgw"]) {
      await mkdir(join(dir, name), { recursive: true });
    }
    const fsid = randomUUID();
    await writeFile(
      conf,
      `[global]
fsid = ${fsid}
mon host = 127.0.0.1:${monPort}
public network = 127.0.0.0/8
cluster network = 127.0.0.0/8
ms bind msgr2 = false
keyring = ${dir}/keyring
run dir = ${dir}/run
admin socket = ${dir}/run/$name.asok
pid file = ${dir}/run/$name.pid
log file = ${dir}/log/$name.log
setuser match path =
osd crush chooseleaf type = 0
osd pool default size = 2
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
mon data avail crit = 1
mon data avail warn = 2
mon max pg per osd = 1000
[mon]
mon data = ${dir}/mon/$id
[mgr]
mgr data = ${dir}/mgr/$id
mgr initial modules =
[osd]
osd data = ${dir}/osd/$id
osd objectstore = memstore
memstore device bytes = ${2 ** 30}
osd class load list = *
osd class default list = *
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:${rgwPort}
rgw data = ${dir}/rgw
rgw dynamic resharding = false
`,
    );
    const keyring = join(dir, "keyring");
    run("ceph-authtool", ["--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *"]);
    const all = ["mon", "mgr", "osd", "mds"].flatMap((each) => ["--cap", each, "allow *"]);
    run("ceph-authtool", [keyring, "--gen-key", "-n", "client.admin", ...all]);
    run("monmaptool", ["--create", "--addv", "a", `[v1:127.0.0.1:${monPort}]`, "--fsid", fsid, join(dir, "monmap")]);
    run("ceph-mon", ["--mkfs", "-i", "a", "--monmap", join(dir, "monmap"), "--keyring", keyring]);
    run("ceph-mon", ["-i", "a"]);
    const caps = (...each: string[]): string[] => each;
    await appendFile(
      keyring,
      `${run("ceph", ["auth", "get-or-create", "mgr.x", ...caps("mon", "allow profile mgr", "osd", "allow *", "mds", "allow *")])}\n`,
    );
    await appendFile(
      keyring,
      `${run("ceph", ["auth", "get-or-create", "client.rgw", ...caps("mon", "allow rw", "osd", "allow rwx")])}\n`,
    );
    run("ceph-mgr", ["-i", "x"]);
    for (const id of ["0", "1"]) {
      const key = run("ceph-authtool", ["--gen-print-key"]);
      const uuid = randomUUID();
      run("ceph", ["osd", "new", uuid, "-i", "-"], JSON.stringify({ cephx_secret: key }));
      const osdCaps = [
        "--cap",
        "mon",
        "allow profile osd",
        "--cap",
        "mgr",
        "allow profile osd",
        "--cap",
        "osd",
        "allow *",
      ];
      run("ceph-authtool", [keyring, "-n", `osd.${id}`, "--add-key", key, ...osdCaps]);
      run("ceph-osd", ["-i", id, "--mkfs", "--osd-uuid", uuid]);
      run("ceph-osd", ["-i", id]);
    }
    run("radosgw", ["-n", "client.rgw"]);
    const origin = `http://127.0.0.1:${rgwPort}`;
    const deadline = Date.now() + upTimeoutMs;
    while (
      !(await fetch(origin).then(
        (answer) => answer.ok,
        () => false,
      ))
    ) {
      if (Date.now() > deadline) throw new Error("the gateway does not answer");
      await sleep(300);
    }
    const [accessKeyId, secretAccessKey] = ["labaccess", "lab/secret+key"];
    run("radosgw-admin", [
      "user",
      "create",
      "--uid=lab",
      "--display-name=lab",
      `--access-key=${accessKeyId}`,
      `--secret-key=${secretAccessKey}`,
    ]);
    return {
      origin,
      accessKeyId,
      secretAccessKey,
      killOsd: (index) => kill(`osd.${index}`, "SIGKILL"),
      [Symbol.asyncDispose]: stop,
    };
  } catch (error) {
    await stop();
    throw error;
  }
}

/** Whether the process is a daemon of this cluster: its pid may have gone to another. */
async function isCeph(pid: number, conf: string): Promise<boolean> {
  const environment = await readFile(`/proc/${pid}/environ`, "utf8").catch(() => "");
  return environment.split("\0").includes(`CEPH_CONF=${conf}`);
}
