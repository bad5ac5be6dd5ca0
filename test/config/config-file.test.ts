import assert from "node:assert/strict";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { Command } from "commander";
import { addServeCommand } from "../../src/cli/commands/serve.ts";
import { checkConfig, parseConfig, readConfig } from "../../src/config/config-file.ts";
import { configKeys } from "../../src/config/schema.ts";
import { temporaryDirectory } from "../daemon/support.ts";

/** `3: message (hint)` for everything wrong. */
function problems(text: string): string[] {
  return parseConfig(text, "/etc/ullage").problems.map(
    ({ line, message, hint }) => `${line}: ${message}${hint === undefined ? "" : ` (${hint})`}`,
  );
}

void test("every key is read; relative paths start at the directory of the file", () => {
  const text = `
data = "state"
api = "unix:api.sock"
apiAuth = "off"
apiHosts = ["disks.example.org"]
nbd = ["127.0.0.1:10809", "unix:/run/ullage/nbd.sock"]
unsafeFileSystem = true
socketMode = "0660"
socketGroup = 6

[tls]
mode = "require"
certs = "pki"
psk = "/etc/keys.psk"
verifyPeer = true

[sources]
allow = ["public", "10.0.0.0/8", "file:/images"]
limit = "50M"

[[sources.match]]
prefix = "s3://Backups/"
endpoint = "https://minio.example.org:9000/"
region = "eu-central-1"
pathStyle = true
credentials = "file:/etc/ullage/keys"
ca = "pki/stores.pem"
mirrors = ["s3://copies/", "https://Mirror.example.org/backups/"]
proxy = "http://user:password@proxy.example.org:3128"
proxyFallback = false
patience = 120
cache = "none"

[[sources.match]]
prefix = "OSS://images/"
signature = "v1"

[[sources.match]]
prefix = "/srv/../srv//images/"
patience = 600
cache = "shared"

[[sources.match]]
prefix = "FILE:///srv/a%20disk"

[log]
level = "debug"
format = "json"
`;
  const { values, problems: found } = parseConfig(text, "/etc/ullage");
  assert.deepEqual(found, []);
  assert.deepEqual(values, {
    data: "/etc/ullage/state",
    api: ["unix:/etc/ullage/api.sock"],
    apiAuth: "off",
    apiHost: ["disks.example.org"],
    nbd: ["127.0.0.1:10809", "unix:/run/ullage/nbd.sock"],
    unsafeFileSystem: true,
    socketMode: 0o660,
    socketGroup: 6,
    tls: "require",
    tlsCerts: "/etc/ullage/pki",
    tlsPsk: "/etc/keys.psk",
    tlsVerifyPeer: true,
    allowSources: ["public", "10.0.0.0/8", "file:/images"],
    sourceLimit: 50 * 2 ** 20,
    sourceSettings: [
      {
        prefix: "s3://Backups/",
        endpoint: "https://minio.example.org:9000",
        region: "eu-central-1",
        pathStyle: true,
        credentials: "file:/etc/ullage/keys",
        ca: "/etc/ullage/pki/stores.pem",
        mirrors: ["s3://copies/", "https://mirror.example.org/backups/"],
        proxy: "http://user:password@proxy.example.org:3128/",
        proxyFallback: false,
        patience: 120,
        cache: "none",
      },
      { prefix: "oss://images/", signature: "v1" },
      { prefix: "/srv/images/", patience: 600, cache: "shared" },
      { prefix: "/srv/a disk" },
    ],
    logLevel: "debug",
    logFormat: "json",
  });
  assert.deepEqual(parseConfig("", "/"), { values: {}, problems: [] });
});

void test("an unknown key is refused with its path, its line and what was probably meant", () => {
  assert.deepEqual(problems('data = "/x"\n\n[tls]\nmodus = "on"\n'), [
    "4: there is no key 'tls.modus' (did you mean 'tls.mode'?)",
  ]);
  assert.deepEqual(problems('socketmode = "0660"'), ["1: there is no key 'socketmode' (did you mean 'socketMode'?)"]);
  assert.deepEqual(problems('[log]\nverifyPeer = true\nlevel = "info"'), [
    "2: there is no key 'log.verifyPeer' (did you mean 'tls.verifyPeer'?)",
  ]);
  assert.deepEqual(problems('tls = "require"'), [
    "1: there is no key 'tls' (it is a table: 'tls.mode', 'tls.certs', 'tls.psk', 'tls.verifyPeer')",
  ]);
  assert.deepEqual(problems("[colours]\n"), ["1: there is no key 'colours' (`ullage help config` lists all keys)"]);
});

void test("a value of the wrong type is refused with its key and its line, also behind values of several lines", () => {
  assert.deepEqual(
    problems(`# a comment
nbd = [
  "127.0.0.1:1",  # one
  "[::1]:2",
]
socketMode = 660
unsafeFileSystem = "yes"
data = ["a"]
api = ["here"]
[tls]
mode = "maybe"
log = """
several
lines"""
`),
    [
      "6: 'socketMode' must be an octal mode in quotes, such as \"0660\", not 660",
      "7: 'unsafeFileSystem' must be true or false, not \"yes\"",
      "8: 'data' must be a path in quotes, not a list",
      "9: 'api' can't listen on \"here\": it is not HOST:PORT, [IPV6]:PORT or unix:PATH",
      '11: \'tls.mode\' must be "off", "on" or "require", not "maybe"',
      "12: there is no key 'tls.log' (`ullage help config` lists all keys)",
    ],
  );
  assert.deepEqual(problems('nbd = []\ndata = ""\nsocketMode = "0999"'), [
    "1: 'nbd' is an empty list: leave the key out to get the default",
    "2: 'data' must be a path, not an empty text",
    '3: \'socketMode\' must be an octal mode in quotes, such as "0660", not "0999"',
  ]);
});

void test("what sources.allow can't mean is refused; an empty list lets nothing in", () => {
  const [problem] = problems('[sources]\nallow = ["public", "nonsense:"]');
  assert.match(problem, /^2: 'sources.allow' is not right: .*nonsense:/);
  assert.deepEqual(parseConfig("[sources]\nallow = []", "/").values, { allowSources: [] });
});

void test("what is wrong in a table of a list is told with its place; a secret where a reference belongs is not repeated", () => {
  const text = `[[sources.match]]
prefix = "s3://a/"
[[sources.match]]
prefix = "ftp://b/"
endpiont = "http://c"
endpoint = "http://me:hunter2@c"
credentials = "hunter2"
patience = 0
[[sources.match]]
region = "x"
`;
  const found = problems(text);
  assert.ok(!found.join().includes("hunter2"));
  assert.deepEqual(
    found.map((each) => each.replace(/(credentials: write).*/, "$1 …")),
    [
      "4: 'sources.match[1].prefix' must begin with http://, https://, s3://, oss://, oci://, nbd:// or, for files, /",
      "5: there is no key 'sources.match[1].endpiont' (did you mean 'endpoint'?)",
      "6: 'sources.match[1].endpoint' must not hold credentials: name them in 'credentials'",
      "7: 'sources.match[1].credentials' is no reference to credentials: write …",
      "8: 'sources.match[1].patience' must be a number of seconds, 1 to 86400, not 0",
      "9: 'sources.match[2].prefix' is missing: the sources that this table is about: those whose address or path begins like this; the longest prefix counts",
    ],
  );
  const asTable = problems('[sources.match]\nprefix = "s3://a/"\n');
  assert.equal(asTable.length, 1);
  assert.match(
    asTable[0],
    /there is no key 'sources.match' \(it is a list of tables, \[\[sources.match\]\], with 'sources/,
  );
});

void test("what means nothing for files is refused in a table about them, and files are no mirrors", () => {
  const ofFiles = "(for them there are 'alternatives', 'patience', 'cache')";
  const keys = [
    "endpoint",
    "region",
    "pathStyle",
    "signature",
    "credentials",
    "ca",
    "mirrors",
    "proxy",
    "proxyFallback",
  ];
  const text = `[[sources.match]]\n${keys.map((key) => `${key} = "x"\n`).join("")}prefix = "/srv"\npatience = 5\n`;
  assert.deepEqual(
    problems(text),
    keys.map((key, at) => `${at + 2}: 'sources.match[0].${key}' means nothing for files ${ofFiles}`),
  );
  assert.deepEqual(problems('[[sources.match]]\nprefix = "file://elsewhere/srv"\n[[sources.match]]\nprefix = "srv"'), [
    "2: 'sources.match[0].prefix' names no files of this host: write /path, or file:///path",
    "4: 'sources.match[1].prefix' must begin with http://, https://, s3://, oss://, oci://, nbd:// or, for files, /",
  ]);
  assert.deepEqual(problems('[[sources.match]]\nprefix = "s3://a"\nmirrors = ["/srv"]'), [
    "3: 'sources.match[0].mirrors' must begin with http://, https://, s3://, oss://, oci:// or nbd://",
  ]);
  assert.deepEqual(problems('[[sources.match]]\nprefix = "s3://a"\nalternatives = ["/srv"]'), [
    "3: 'sources.match[0].alternatives' is about files (other sources have 'mirrors')",
  ]);
  assert.deepEqual(problems('[[sources.match]]\nprefix = "/a/"\nalternatives = ["srv", "s3://a"]'), [
    "3: 'sources.match[0].alternatives' must be paths that begin with /",
  ]);
});

void test("a group is looked up; one that does not exist is refused", () => {
  assert.equal(parseConfig('socketGroup = "root"', "/").values["socketGroup"], 0);
  assert.equal(parseConfig('socketGroup = "12"', "/").values["socketGroup"], 12);
  assert.deepEqual(problems('socketGroup = "no-such-group-here"'), [
    "1: 'socketGroup' names the group 'no-such-group-here', which does not exist",
  ]);
  assert.deepEqual(problems('socketGroup = "--help"'), [
    "1: 'socketGroup' names the group '--help', which does not exist",
  ]);
});

void test("what is no TOML, no text or no file is an error that says where, and shows nothing of the content", async (t) => {
  const file = join(await temporaryDirectory(t), "ullage.toml");
  await writeFile(file, 'data = "/x"\ndata = "secret"\n');
  await assert.rejects(readConfig(file), (error: Error & { code: string }) => {
    assert.equal(error.code, "config");
    assert.ok(error.message.startsWith(`${file}:2: is not TOML: `), error.message);
    assert.doesNotMatch(error.message, /secret/);
    return true;
  });
  await writeFile(file, "dat = 1\nap = 2\nnb = 3\n");
  await assert.rejects(readConfig(file), {
    message: `${file}:1: there is no key 'dat'`,
    hint: `did you mean 'data'?; 2 more: \`ullage config check ${file}\` lists all`,
  });
  await writeFile(file, Buffer.from([0xff, 0xfe]));
  await assert.rejects(checkConfig(file), { code: "config" });
  await writeFile(file, `#${"x".repeat(70_000)}`);
  await assert.rejects(checkConfig(file), { code: "config" });
  await assert.rejects(checkConfig(join(file, "none")), { code: "config", message: /can't be read/ });
});

void test("every flag of serve has its key in the file, and every key with a flag has that flag", () => {
  const program = new Command();
  addServeCommand(program);
  const options = program.commands[0].options.filter(({ long }) => !["--json", "--config"].includes(long!));
  const flags = options.map((option) => `${option.long} sets ${option.attributeName()}`);
  const keys = configKeys.flatMap(({ flag, option }) => (flag === undefined ? [] : [`${flag} sets ${option}`]));
  assert.deepEqual(keys.sort(), flags.sort());
});

void test("docs/CONFIG.md lists exactly the keys that there are, and its example is good", async () => {
  const text = await readFile(new URL("../../docs/CONFIG.md", import.meta.url), "utf8");
  const rows = text
    .split("\n")
    .filter((line) => line.startsWith("| `"))
    .map((line) => line.split("|").map((cell) => cell.trim()))
    .map(([, ...cells]) => cells.slice(0, -1));
  const quote = (word: string): string => `\`${word}\``;
  assert.deepEqual(
    rows,
    configKeys.map(({ key, kind, fallback, flag, meaning }) => [
      quote(key),
      kind.name,
      fallback,
      flag === undefined ? "" : quote(flag),
      meaning,
    ]),
  );
  const example = /```toml\n([^`]*)```/.exec(text);
  assert.ok(example, "there is an example");
  // Another machine need not have the group.
  assert.deepEqual(problems(example[1].replace(/^socketGroup = .*$/m, "socketGroup = 6")), []);
});
