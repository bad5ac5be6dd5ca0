/** A column of a table: its heading, what stands in it, and on which side. */
export interface Column<T> {
  heading: string;
  value: (row: T) => string;
  right?: boolean;
  /** May be cut short when the table is wider than the terminal. */
  elastic?: boolean;
}

const gap = "  ";
const leastElasticWidth = 8;

/** A table that fits the terminal; on anything but a terminal nothing is cut. */
export function formatTable<T>(rows: readonly T[], columns: readonly Column<T>[], width = terminalWidth()): string {
  const cells = [columns.map(({ heading }) => heading), ...rows.map((row) => columns.map(({ value }) => value(row)))];
  const widths = columns.map((_, index) => Math.max(...cells.map((line) => line[index].length)));
  const total = widths.reduce((sum, each) => sum + each, gap.length * (columns.length - 1));
  const elastic = columns.findIndex((column) => column.elastic === true);
  if (elastic !== -1 && total > width) {
    widths[elastic] = Math.max(leastElasticWidth, widths[elastic] - (total - width));
  }
  return cells
    .map((line) =>
      line
        .map((cell, index) => {
          const cut = shorten(cell, widths[index]);
          return columns[index].right === true ? cut.padStart(widths[index]) : cut.padEnd(widths[index]);
        })
        .join(gap)
        .trimEnd(),
    )
    .join("\n");
}

/** `label   value` lines, for one thing. */
export function formatFields(fields: readonly (readonly [label: string, value: string])[]): string {
  const width = Math.max(...fields.map(([label]) => label.length));
  return fields.map(([label, value]) => `${label.padEnd(width)}${gap}${value}`).join("\n");
}

function shorten(text: string, width: number): string {
  return text.length <= width ? text : `${text.slice(0, width - 1)}…`;
}

function terminalWidth(): number {
  return process.stdout.isTTY ? process.stdout.columns || Infinity : Infinity;
}

export function print(text: string): void {
  process.stdout.write(`${text}\n`);
}

export function printJson(value: unknown): void {
  print(JSON.stringify(value, null, 2));
}
