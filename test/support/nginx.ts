import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { TestContext } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { atEnd, temporaryDirectory } from "../daemon/support.ts";
import { freePort } from "./nbd-source.ts";

/** What the servers of an nginx may be made of. */
export interface NginxPlace {
  /** Its own folder, for certificates and the like. */
  directory: string;
  /** The documents, in `directory`. */
  root: string;
  /** Two ports of the loopback: for a second server that the first one sends people to, or for TLS. */
  port: number;
  otherPort: number;
}

/** The text of its `server` blocks. */
export type NginxServers = (place: NginxPlace) => string;

/** An nginx of its own in a temporary directory, which goes with the test. */
export class Nginx implements NginxPlace {
  readonly directory: string;
  readonly root: string;
  readonly port: number;
  readonly otherPort: number;
  #child: ChildProcess | undefined;
  #log = "";

  private constructor(directory: string, port: number, otherPort: number) {
    this.directory = directory;
    this.root = join(directory, "root");
    this.port = port;
    this.otherPort = otherPort;
  }

  static async start(t: TestContext, servers: NginxServers): Promise<Nginx> {
    // It cannot choose a port for itself, and somebody may be faster to take the one that was free.
    for (let attempt = 1; ; attempt++) {
      const nginx = new Nginx(await temporaryDirectory(t), await freePort(), await freePort());
      await mkdir(nginx.root);
      try {
        await nginx.start(servers);
        atEnd(t, () => nginx.stop());
        return nginx;
      } catch (error) {
        if (attempt === 3) throw error;
      }
    }
  }

  /** `http://127.0.0.1:PORT` */
  get url(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  /** The same without its old connections, with other servers: what a reload does once these are closed. */
  async restart(servers: NginxServers): Promise<void> {
    await this.stop();
    await this.start(servers);
  }

  async start(servers: NginxServers): Promise<void> {
    const { directory } = this;
    const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
      .map((name) => `${name}_temp_path ${directory}/${name};`)
      .join("\n");
    await writeFile(
      join(directory, "nginx.conf"),
      `daemon off; master_process off; pid ${directory}/pid; error_log stderr;
       events {}
       http {
         access_log off; ${temporary}
         ${servers(this)}
       }`,
    );
    const child = spawn("nginx", ["-p", directory, "-c", "nginx.conf"], { stdio: ["ignore", "ignore", "pipe"] });
    this.#child = child;
    child.stderr.on("data", (text: Buffer) => (this.#log = (this.#log + text.toString()).slice(-4000)));
    for (let n = 0; !(await answers(this.url)); n++) {
      if (child.exitCode !== null || n > 500) {
        await this.stop();
        throw new Error(`nginx does not come up: ${this.#log}`);
      }
      await sleep(20);
    }
  }

  async stop(): Promise<void> {
    const child = this.#child;
    this.#child = undefined;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    child.kill("SIGTERM");
    await once(child, "exit");
  }
}

function answers(url: string): Promise<boolean> {
  return fetch(url, { redirect: "manual" }).then(
    () => true,
    () => false,
  );
}
