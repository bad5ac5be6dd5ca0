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

/**
 * A table that fits the terminal: elastic columns are cut first, the widest most, and what is still too wide then loses
 * the ends of its lines. On anything but a terminal nothing is cut.
 */
export function formatTable<T>(rows: readonly T[], columns: readonly Column<T>[], width = terminalWidth()): string {
  const cells = [columns.map(({ heading }) => heading), ...rows.map((row) => columns.map(({ value }) => value(row)))];
  const widths = columns.map((_, index) => Math.max(...cells.map((line) => line[index].length)));
  shrink(widths, columns, width - gap.length * (columns.length - 1));
  return cells
    .map((line) => {
      const padded = line.map((cell, index) => {
        const cut = shorten(cell, widths[index]);
        return columns[index].right === true ? cut.padStart(widths[index]) : cut.padEnd(widths[index]);
      });
      return shorten(padded.join(gap).trimEnd(), width);
    })
    .join("\n");
}

/** Takes from the widest elastic column until `room` is enough, or none can give any more. */
function shrink<T>(widths: number[], columns: readonly Column<T>[], room: number): void {
  let excess = widths.reduce((sum, each) => sum + each, 0) - room;
  for (; excess > 0; excess--) {
    const giving = columns.flatMap(({ elastic }, index) =>
      elastic === true && widths[index] > leastElasticWidth ? [index] : [],
    );
    if (giving.length === 0) return;
    widths[giving.reduce((widest, index) => (widths[index] > widths[widest] ? index : widest))]--;
  }
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
