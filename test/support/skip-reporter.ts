/**
 * The spec reporter, plus: a list of every skipped test by name just before the closing lines, and a failing run when
 * a test was skipped in CI, where everything can be installed and a skip is a hole in the proof.
 */
import { relative } from "node:path";
import { Readable } from "node:stream";
import { spec as SpecReporter } from "node:test/reporters";
import type { TestEvent } from "node:test/reporters";

export default async function* reporter(source: AsyncIterable<TestEvent>): AsyncGenerator<string> {
  yield* Readable.from(withSkips(source)).compose(new SpecReporter());
}

async function* withSkips(source: AsyncIterable<TestEvent>): AsyncGenerator<TestEvent> {
  const skips: string[] = [];
  let listed = false;
  for await (const event of source) {
    if ((event.type === "test:pass" || event.type === "test:fail") && event.data.skip !== undefined) {
      const reason = typeof event.data.skip === "string" ? event.data.skip : "no reason given";
      skips.push(`${relative(process.cwd(), event.data.file ?? "?")}: ${event.data.name}: ${reason}`);
    }
    // The totals are diagnostics of the whole run, "tests 123" the first of them.
    if (
      !listed &&
      event.type === "test:diagnostic" &&
      event.data.nesting === 0 &&
      /^tests \d+$/.test(event.data.message)
    ) {
      listed = true;
      for (const message of closingNotes(skips)) yield { ...event, data: { ...event.data, message, level: "warn" } };
    }
    yield event;
  }
}

function closingNotes(skips: readonly string[]): string[] {
  if (skips.length === 0) return [];
  const notes = skips.map((skip) => `SKIPPED ${skip}`);
  if (process.env.CI !== undefined && process.env.CI !== "") {
    process.exitCode = 1;
    notes.push(`FAILED because ${skips.length} of the tests did not run: nothing may be skipped in CI`);
  }
  return notes;
}
