import assert from "node:assert/strict";
import { globSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

const root = join(import.meta.dirname, "../..");

/** The rules of docs/DURABILITY.md that apply to this version. */
function rulesThatApply(): number[] {
  const document = readFileSync(join(root, "docs/DURABILITY.md"), "utf8");
  const rules = [...document.matchAll(/^### (\d+)\. .*\n\n((?:(?!^#)[^])*)/gm)];
  assert.deepEqual(
    rules.map(([, number]) => Number(number)),
    rules.map((_, index) => index + 1),
    "numbered from 1, without gaps",
  );
  return rules.filter(([, , text]) => !text.startsWith("_Applies when")).map(([, number]) => Number(number));
}

/** The rules that the title of some test names: "rule 7", "rules 6 and 32", "rule 21d". */
function rulesInTitles(): Set<number> {
  const named = new Set<number>();
  for (const path of globSync("test/**/*.test.ts", { cwd: root })) {
    const source = readFileSync(join(root, path), "utf8");
    for (const [, , title] of source.matchAll(/\btest\(\s*(["'`])((?:(?!\1)[^])*)\1/g))
      for (const [rules] of title.matchAll(/\brules? \d+[a-z]?(?:(?:, | and )\d+[a-z]?)*/g))
        for (const [number] of rules.matchAll(/\d+/g)) named.add(Number(number));
  }
  return named;
}

void test("every durability rule that applies is named by a test", () => {
  const named = rulesInTitles();
  const missing = rulesThatApply().filter((rule) => !named.has(rule));
  assert.deepEqual(missing, [], "rules that no test has in its title");
});

void test("durability rule 34: what keeps data reads no clock but the one it is given", () => {
  const engine = globSync("src/{volume,blob,catalog}/**/*.ts", { cwd: root });
  assert.ok(engine.length > 0);
  const reading = engine.filter((path) =>
    /\b(Date\.now|new Date\(\)|performance\.now|process\.(hrtime|uptime)|setTimeout|setInterval)\b/.test(
      readFileSync(join(root, path), "utf8"),
    ),
  );
  assert.deepEqual(reading, []);
});
