/** What a benchmark found, and its Markdown. */
export interface Table {
  title: string;
  /** How it was measured, in a sentence or two. */
  about: string;
  columns: readonly string[];
  rows: readonly (readonly string[])[];
  targets: readonly Target[];
}

/** A figure that the project promises. */
export interface Target {
  what: string;
  figure: string;
  required: string;
  reached: boolean;
}

/** A ratio of at least `least`, e.g. 1.6 times the peer's IOPS. */
export function atLeast(what: string, ratio: number, least: number): Target {
  return { what, figure: `${ratio.toFixed(2)} x`, required: `at least ${least} x`, reached: ratio >= least };
}

export function atMost(what: string, value: number, most: number, unit: string): Target {
  return {
    what,
    figure: `${short(value)} ${unit}`,
    required: `at most ${short(most)} ${unit}`,
    reached: value <= most,
  };
}

/** Three significant digits, thousands separated: `211,000`, `3.81`. */
export function short(value: number): string {
  return value.toLocaleString("en", { maximumSignificantDigits: 3 });
}

export function toMarkdown(table: Table): string {
  const alignment = table.columns.map((_, index) => (index === 0 ? "---" : "---:"));
  const lines = [table.columns, alignment, ...table.rows].map((cells) => `| ${cells.join(" | ")} |`);
  return [`## ${table.title}`, "", table.about, "", ...lines, ""].join("\n");
}

export function targetsToMarkdown(targets: readonly Target[]): string {
  const rows = targets.map(({ what, figure, required, reached }) => {
    return `| ${what} | ${figure} | ${required} | ${reached ? "yes" : "**no**"} |`;
  });
  return ["| what | measured | required | reached |", "| --- | ---: | ---: | --- |", ...rows, ""].join("\n");
}
