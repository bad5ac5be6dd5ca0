import { formatBytes, formatShare } from "./format.js";

/*
 * How a map's cells are laid out and painted: in reading order, each filled from the bottom with what it holds.
 */

/** @typedef {import("./map-grid.js").MapGrid} MapGrid */
/** @typedef {import("./map-grid.js").Sort} Sort */

const minPitch = 8;
const maxPitch = 26;
const maxHeight = 288;
const gap = 1;

/** So many cells fit a width (CSS pixels). @param {number} width */
export function cellsThatFit(width) {
  return Math.max(64, Math.floor(width / minPitch) * Math.floor(maxHeight / minPitch));
}

/** @typedef {{ pitch: number, columns: number, height: number }} Layout CSS pixels */

/**
 * The largest cells with which all of them fit.
 * @param {number} count
 * @param {number} width
 * @returns {Layout}
 */
export function layOut(count, width) {
  for (let pitch = maxPitch; ; pitch--) {
    const columns = Math.max(1, Math.floor(width / pitch));
    const height = Math.ceil(count / columns) * pitch;
    if (height <= maxHeight || pitch === minPitch) return { pitch, columns, height };
  }
}

/** Colours by their names in the style sheet, `--map-…`. @typedef {(name: string) => string} Palette */

const writtenColours = 6;
const localColours = 2;

/**
 * The name of a sort's colour. Layers that a volume's bytes are in get one each, in order of appearance.
 * @param {readonly Sort[]} sorts
 * @param {Sort} sort
 */
export function colourOf(sorts, sort) {
  if (sort.kind === "zero" || sort.kind === "remote") return sort.kind;
  const place = sorts.filter(({ kind }) => kind === sort.kind).indexOf(sort);
  return `${sort.kind}-${Math.min(place, (sort.kind === "written" ? writtenColours : localColours) - 1) + 1}`;
}

/** From the bottom of a cell upwards. */
const stack = ["written", "local", "remote"];

/**
 * @param {HTMLCanvasElement} canvas
 * @param {MapGrid} grid
 * @param {{ layout: Layout, width: number, palette: Palette, before: MapGrid | undefined, selected: number | null }} how
 */
export function drawMap(canvas, grid, { layout, width, palette, before, selected }) {
  const { pitch, columns, height } = layout;
  const context = scaledContext(canvas, width, height);
  if (context === null) return;
  const side = pitch - gap;
  const order = grid.sorts
    .map((sort, index) => ({
      amounts: grid.amounts[index],
      rank: stack.indexOf(sort.kind),
      colour: colourOf(grid.sorts, sort),
    }))
    .filter(({ rank }) => rank >= 0)
    .sort((a, b) => a.rank - b.rank)
    .map(({ amounts, colour }) => ({ amounts, fill: palette(colour) }));
  const zero = palette("zero");
  const changed = palette("changed");
  for (let cell = 0; cell < grid.count; cell++) {
    const x = (cell % columns) * pitch;
    const y = Math.floor(cell / columns) * pitch;
    context.fillStyle = zero;
    context.fillRect(x, y, side, side);
    const whole = grid.bytesIn(cell);
    let floor = y + side;
    for (const { amounts, fill } of order) {
      if (amounts[cell] <= 0) continue;
      const tall = Math.max(1, (amounts[cell] / whole) * side);
      context.fillStyle = fill;
      context.fillRect(x, Math.max(y, floor - tall), side, Math.min(tall, floor - y));
      floor -= tall;
    }
    if (before !== undefined && grid.differs(cell, before)) {
      context.fillStyle = changed;
      context.fillRect(x, y, side, side);
    }
  }
  if (selected === null) return;
  context.strokeStyle = palette("selected");
  context.lineWidth = 2;
  context.strokeRect((selected % columns) * pitch, Math.floor(selected / columns) * pitch, side, side);
}

/** @typedef {{ atMs: number, written: number, local: number, remote: number }} Sample bytes of each kind at a time */

/**
 * Areas on top of each other: how much of the disk was where, over time.
 * @param {HTMLCanvasElement} canvas
 * @param {readonly Sample[]} samples at least two
 * @param {{ size: number, width: number, height: number, palette: Palette }} how
 */
export function drawHistory(canvas, samples, { size, width, height, palette }) {
  const context = scaledContext(canvas, width, height);
  if (context === null) return;
  context.fillStyle = palette("zero");
  context.fillRect(0, 0, width, height);
  const first = samples[0].atMs;
  const span = Math.max(1, samples[samples.length - 1].atMs - first);
  const x = (/** @type {Sample} */ sample) => ((sample.atMs - first) / span) * width;
  const layers = /** @type {[string, (sample: Sample) => number][]} */ ([
    ["remote", ({ written, local, remote }) => written + local + remote],
    ["local-1", ({ written, local }) => written + local],
    ["written-1", ({ written }) => written],
  ]);
  for (const [colour, top] of layers) {
    context.fillStyle = palette(colour);
    context.beginPath();
    context.moveTo(0, height);
    for (const sample of samples) context.lineTo(x(sample), height * (1 - top(sample) / size));
    context.lineTo(width, height);
    context.fill();
  }
}

/**
 * A context in CSS pixels, sharp on every screen.
 * @param {HTMLCanvasElement} canvas
 * @param {number} width
 * @param {number} height
 */
function scaledContext(canvas, width, height) {
  const scale = devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context?.scale(scale, scale);
  return context;
}

/** @type {Record<string, string>} */
export const kindWords = {
  written: "written here",
  local: "in the local cache",
  remote: "at the source only",
  zero: "zeros",
};

/**
 * A cell in words: where it is, and what it holds.
 * @param {MapGrid} grid
 * @param {number} cell
 */
export function describeCell(grid, cell) {
  const start = cell * grid.cellBytes;
  const bytes = grid.bytesIn(cell);
  const parts = grid
    .describe(cell)
    .map(({ sort, bytes: part }) => `${kindWords[sort.kind]} ${formatShare(part, bytes)}${ownerText(grid, sort)}`);
  return `${exactOffset(start)} – ${exactOffset(start + bytes)}: ${parts.join(", ")}`;
}

/**
 * Names the layer when there are several that it could be.
 * @param {MapGrid} grid
 * @param {Sort} sort
 */
function ownerText(grid, sort) {
  if (sort.owner === null || grid.sorts.filter(({ kind }) => kind === sort.kind).length < 2) return "";
  return ` (${sort.owner.slice(0, 8)})`;
}

/** An offset short enough to read and still exact to the block. @param {number} offset */
function exactOffset(offset) {
  if (offset === 0) return "0";
  const unit = [2 ** 40, 2 ** 30, 2 ** 20, 2 ** 10].find((bytes) => offset >= bytes && (offset * 1000) % bytes === 0);
  return unit === undefined ? `${offset} B` : formatBytes(unit).replace("1 ", `${offset / unit} `);
}
