import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { mkdir, readFile, symlink, writeFile } from "node:fs/promises";
import { connect, createServer } from "node:net";
import { delimiter, join } from "node:path";
import { test, type TestContext } from "node:test";
import { promisify } from "node:util";
import type { HealthView } from "../../src/daemon/views.ts";
import { atEnd, temporaryDirectory } from "../daemon/support.ts";
import { requireTool } from "../support/tools.ts";
import { launch } from "./support.ts";

const execute = promisify(execFile);
const root = join(import.meta.dirname, "../..");
const name = "ullage.example.org";

interface Block {
  /** of the comment before it */
  marker: string | undefined;
  language: string;
  text: string;
}

async function blocks(): Promise<Block[]> {
  const text = await readFile(join(root, "docs/SECURITY.md"), "utf8");
  const found = text.matchAll(/(?:<!-- (?<marker>[^>]+) -->\n+)?```(?<language>sh|nginx)\n(?<text>[^`]*)```/g);
  return [...found].map(({ groups }) => groups as unknown as Block);
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  const { port } = server.address() as { port: number };
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** For `ullage.example.org` and localhost, signed by itself. */
async function makeCertificate(folder: string): Promise<void> {
  await writeFile(
    join(folder, "template"),
    `cn = "${name}"\ndns_name = "${name}"\ndns_name = "localhost"\ntls_www_server\nsigning_key\nexpiration_days = 2\n`,
  );
  await execute("certtool", ["--generate-privkey", "--ecc", "--outfile", "key.pem"], { cwd: folder });
  const signing = ["--generate-self-signed", "--load-privkey", "key.pem", "--template", "template"];
  await execute("certtool", [...signing, "--outfile", "cert.pem"], { cwd: folder });
}

/** The document's nginx configuration, with this port, these files and this server behind it. */
async function startProxy(t: TestContext, folder: string, text: string, api: string): Promise<number> {
  const port = await freePort();
  const server = text
    .replace("listen 443 ssl", `listen 127.0.0.1:${port} ssl`)
    .replace("/etc/ssl/ullage.pem", join(folder, "cert.pem"))
    .replace("/etc/ssl/ullage.key", join(folder, "key.pem"))
    .replace("127.0.0.1:7070", api);
  const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(
    (kind) => `${kind}_temp_path ${folder}/${kind};`,
  );
  await writeFile(
    join(folder, "nginx.conf"),
    `daemon off; master_process off; pid ${folder}/pid; error_log stderr; events {}
     http { access_log off; ${temporary.join(" ")} ${server} }`,
  );
  const nginx = spawn("nginx", ["-p", folder, "-c", "nginx.conf"], { stdio: ["ignore", "ignore", "inherit"] });
  const ended = new Promise((resolve) => nginx.once("exit", resolve));
  atEnd(t, async () => {
    nginx.kill("SIGTERM");
    await ended;
  });
  while (!(await accepts(port))) {
    assert.equal(nginx.exitCode, null, "nginx has ended");
    await new Promise((next) => setTimeout(next, 20));
  }
  return port;
}

function accepts(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, "127.0.0.1", () => resolve(true));
    socket.on("error", () => resolve(false));
    socket.on("connect", () => socket.destroy());
  });
}

void test("every command of docs/SECURITY.md works, behind a TLS proxy as well", async (t) => {
  if (!requireTool(t, "curl", "nginx", "certtool")) return;
  const folder = await temporaryDirectory(t);
  await mkdir(join(folder, "bin"));
  await symlink(join(root, "bin/ullage"), join(folder, "bin/ullage"));
  await makeCertificate(folder);
  const all = await blocks();
  const byMarker = (marker: string): string => all.find((block) => block.marker === marker)!.text;
  const [command, ...args] = byMarker("proxy: server").trim().split(" ");
  assert.equal(command, "ullage");
  const sockets = ["--nbd", `unix:${folder}/nbd.sock`, "--api", "127.0.0.1:0", `unix:${folder}/ullage-data/api.sock`];
  const { announced } = await launch<HealthView>(t, [...args, ...sockets], { cwd: folder });
  const api = announced.listeners[0].address;
  const port = await startProxy(t, folder, all.find(({ language }) => language === "nginx")!.text, api);

  const script = all
    .filter(({ language, marker }) => language === "sh" && marker !== "proxy: server")
    .map(({ text }) =>
      text.replaceAll("127.0.0.1:7070", api).replaceAll(`https://${name}`, `https://localhost:${port}`),
    )
    .join("\n");
  const env = {
    ...process.env,
    ULLAGE_API: undefined,
    PATH: [join(folder, "bin"), process.env["PATH"]].join(delimiter),
    NODE_EXTRA_CA_CERTS: join(folder, "cert.pem"),
  };
  const { stdout } = await execute("bash", ["-euxc", script], { cwd: folder, env });
  assert.match(stdout, /^NAME +SCOPE +CREATED +EXPIRES +LAST USED\ndeploy +write /m);
  assert.match(stdout, /^\{"status":"ok",/m);
  assert.match(stdout, /^web1 is ready: 1G/m);
  assert.match(stdout, /^NAME +SIZE .*\nweb1 +1G /m);
  assert.match(stdout, /^token grafana is gone/m);

  const through = ["--resolve", `${name}:${port}:127.0.0.1`, "--cacert", join(folder, "cert.pem")];
  const secret = (await readFile(join(folder, "grafana.token"), "utf8")).trim();
  const url = `https://${name}:${port}/v1/health`;
  const status = async (...more: string[]): Promise<string> => {
    const quiet = ["-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", `Authorization: Bearer ${secret}`];
    return (await execute("curl", [...through, ...quiet, ...more, url])).stdout;
  };
  assert.equal(await status(), "200");
  assert.equal(await status("-H", `Origin: https://${name}:${port}`), "200");
  assert.equal(await status("-H", "Host: evil.example"), "421");
});
