import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { withoutSecrets } from "../../src/base/without-secrets.ts";
import { RepeatedMessages } from "../../src/cli/repeated-messages.ts";

const stderrLog = fileURLToPath(new URL("../../src/cli/stderr-log.ts", import.meta.url));

/** What a process logs to its stderr. @param calls statements in which `log` is the log */
function logged(options: { logLevel: string; logFormat: string }, calls: string): string[] {
  const script = `import { stderrLog } from ${JSON.stringify(stderrLog)};
    const log = stderrLog(${JSON.stringify(options)}); ${calls}`;
  const { stderr, status } = spawnSync(process.execPath, ["--input-type=module", "-e", script], {
    encoding: "utf8",
    timeout: 20_000,
  });
  assert.equal(status, 0, stderr);
  return stderr.split("\n").filter((line) => line !== "");
}

void test("text lines have time, level and message; JSON lines have every field besides", () => {
  const calls = `log("warn", "nbd: gone", { address: "127.0.0.1:9", volume: "v", attempts: 3 });`;
  const [text] = logged({ logLevel: "info", logFormat: "text" }, calls);
  assert.match(text, /^\d{4}-\d\d-\d\dT[\d:.]+Z warn nbd: gone$/);
  const [json] = logged({ logLevel: "info", logFormat: "json" }, calls);
  const { time, ...rest } = JSON.parse(json) as Record<string, unknown>;
  assert.match(String(time), /^\d{4}-\d\d-\d\dT[\d:.]+Z$/);
  assert.deepEqual(rest, { level: "warn", address: "127.0.0.1:9", volume: "v", attempts: 3, msg: "nbd: gone" });
});

void test("what is quieter than the level asked for is not logged, in either format", () => {
  const calls = `for (const level of ["debug", "info", "warn", "error"]) log(level, "at " + level);`;
  for (const logFormat of ["text", "json"]) {
    const lines = logged({ logLevel: "warn", logFormat }, calls);
    assert.deepEqual(
      lines.map((line) => /at (\w+)/.exec(line)?.[1]),
      ["warn", "error"],
    );
  }
});

void test("passwords and pre-signed queries get into no line, be it in the message or in a field", () => {
  const url = "https://ann:s3cret@example.org/disk.raw?X-Amz-Signature=abcdef";
  const calls = `log("error", ${JSON.stringify(`can't read '${url}'`)}, { source: ${JSON.stringify(url)} });`;
  for (const logFormat of ["text", "json"]) {
    const line = logged({ logLevel: "info", logFormat }, calls).join("\n");
    assert.match(line, /can't read 'https:\/\/example\.org\/disk\.raw\?…'/);
    assert.doesNotMatch(line, /ann|s3cret|abcdef/);
  }
});

void test("addresses lose what is secret in them, and keep the rest", () => {
  const cases: [string, string][] = [
    ["http://u:p@ss@h:80/a?b=c#d is gone", "http://h:80/a?…#d is gone"],
    ["s3://key:secret@bucket/k?versionId=1", "s3://bucket/k?versionId=1"],
    ["s3://bucket/k?versionId=1&X-Amz-Signature=2", "s3://bucket/k?…"],
    ["nbd+unix:///v?socket=/run/n.sock", "nbd+unix:///v?socket=/run/n.sock"],
    ["nbds://me:pw@host:10809/v", "nbds://host:10809/v"],
    ["two: (https://a:b@c/d) and https://e:f@g", "two: (https://c/d) and https://g"],
    ["'http://h/it's/a?b='c',(d)', and", "'http://h/it's/a?…)', and"],
    ["http://h/a?b=c: gone", "http://h/a?…: gone"],
    ["mail to root@example.org about /data/a@b", "mail to root@example.org about /data/a@b"],
  ];
  for (const [text, clean] of cases) assert.equal(withoutSecrets(text), clean);
});

void test("a message that comes again and again is said once in ten seconds, and then how often it came", () => {
  let now = 0;
  const messages = new RepeatedMessages(() => now);
  assert.equal(messages.say("disk full"), "disk full");
  for (now = 1; now <= 500; now++) assert.equal(messages.say("disk full"), undefined);
  assert.equal(messages.say("disk empty"), "disk empty");
  now = 10_000;
  assert.equal(messages.say("disk full"), "disk full (and 500 times before)");
  now = 30_000;
  assert.equal(messages.say("disk full"), "disk full");
});
