import { html } from "htm/preact";
import { useEffect, useRef } from "preact/hooks";
import { useSignal } from "@preact/signals";
import { call, volumePath } from "./api.js";
import { formatBytes, formatDuration, formatShare } from "./format.js";
import { cellsThatFit, colourOf, describeCell, drawHistory, drawMap, kindWords, layOut } from "./map-drawing.js";
import { MapGrid, readMap } from "./map-grid.js";
import { ProblemBox } from "./parts.js";
import { Poller } from "./polling.js";

/* The block map of a volume: read while it is looked at, drawn, explored with the pointer or the arrow keys. */

/** @typedef {import("./volume-list.js").Volume} Volume */
/** @typedef {import("./map-drawing.js").Sample} Sample */

const busyPollMs = 1_500;
const idlePollMs = 10_000;
const historyHeight = 40;
/** Readings that are kept of a volume; when there are more, every other one goes. */
const maxSamples = 240;

/** @param {{ volume: Volume }} props */
export function MapPanel({ volume }) {
  const frame = useRef(/** @type {HTMLDivElement | null} */ (null));
  const width = useSignal(0);
  const theme = useSignal(0);
  const grids = useSignal(/** @type {{ now: MapGrid, before: MapGrid | undefined } | null} */ (null));
  const history = useSignal(/** @type {Sample[]} */ ([]));
  const selected = useSignal(/** @type {number | null} */ (null));
  const problem = useSignal(/** @type {unknown} */ (null));
  const busy = useRef(false);
  busy.current = volume.hydration.state === "running" || volume.connections > 0;

  useEffect(() => {
    if (frame.current === null) return undefined;
    const observer = new ResizeObserver(([entry]) => (width.value = Math.floor(entry.contentRect.width)));
    observer.observe(frame.current);
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    const repaint = () => theme.value++;
    scheme.addEventListener("change", repaint);
    return () => {
      observer.disconnect();
      scheme.removeEventListener("change", repaint);
    };
  }, []);

  const poller = useRef(/** @type {Poller | null} */ (null));
  useEffect(() => {
    const stop = new AbortController();
    const current = new Poller(
      async () => {
        const cells = cellsThatFit(frame.current?.clientWidth ?? 800);
        try {
          const grid = await readMap(volume.size, cells, (offset, limit) =>
            call(`${volumePath(volume.name)}/map?offset=${offset}&limit=${limit}`, { signal: stop.signal }),
          );
          const last = grids.value?.now;
          grids.value = { now: grid, before: last?.count === grid.count ? last : undefined };
          history.value = withSample(history.value, grid);
          problem.value = null;
        } catch (error) {
          problem.value = stop.signal.aborted ? null : error;
          throw error;
        }
      },
      () => (busy.current ? busyPollMs : idlePollMs),
    );
    poller.current = current;
    return () => {
      stop.abort();
      current.stop();
    };
  }, [volume.id, volume.name, volume.size]);
  useEffect(() => poller.current?.hint(), [volume.writtenBytes, volume.fetchedBytes]);

  return html`<section class="card wide" aria-label="Block map">
    <h2>Where its bytes are</h2>
    <${ProblemBox} problem=${problem.value} />
    <div class="map" ref=${frame} style=${{ minHeight: `${heightOf(volume.size, width.value)}px` }}>
      ${
        grids.value !== null &&
        width.value > 0 &&
        html`<${MapCanvas}
          name=${volume.name}
          grids=${grids.value}
          width=${width.value}
          theme=${theme.value}
          selected=${selected}
        />`
      }
    </div>
    ${
      grids.value === null
        ? html`<p class="cell-text faint">Reading the map…</p>
            <ul class="legend"></ul>`
        : html`<${Legend} grid=${grids.value.now} selected=${selected.value} />`
    }
    ${
      history.value.length > 1 &&
      moved(history.value) &&
      html`<${History} samples=${history.value} size=${volume.size} width=${width.value} theme=${theme.value} />`
    }
  </section>`;
}

/**
 * How high the map will be, so that nothing moves when it comes.
 * @param {number} size
 * @param {number} width
 */
function heightOf(size, width) {
  return width === 0 ? 0 : layOut(new MapGrid(size, cellsThatFit(width)).count, width).height;
}

/**
 * @param {Sample[]} samples
 * @param {MapGrid} grid
 */
function withSample(samples, grid) {
  const kept = samples.length < maxSamples ? samples : samples.filter((_, index) => index % 2 === 0);
  const [written, local, remote] = [grid.total("written"), grid.total("local"), grid.total("remote")];
  return [...kept, { atMs: performance.now(), written, local, remote }];
}

/** @param {readonly Sample[]} samples */
function moved(samples) {
  const [first, last] = [samples[0], samples[samples.length - 1]];
  return first.written !== last.written || first.local !== last.local || first.remote !== last.remote;
}

/** The colours of the style sheet that applies now. @param {Element} element */
function paletteOf(element) {
  const style = getComputedStyle(element);
  return (/** @type {string} */ name) => style.getPropertyValue(`--map-${name}`).trim();
}

/**
 * @param {{ name: string, grids: { now: MapGrid, before: MapGrid | undefined }, width: number, theme: number,
 *   selected: import("@preact/signals").Signal<number | null> }} props
 */
function MapCanvas({ name, grids, width, theme, selected }) {
  const canvas = useRef(/** @type {HTMLCanvasElement | null} */ (null));
  const grid = grids.now;
  const layout = layOut(grid.count, width);
  const chosen = selected.value === null ? null : Math.min(selected.value, grid.count - 1);

  useEffect(() => {
    const element = canvas.current;
    if (element === null) return;
    drawMap(element, grid, { layout, width, palette: paletteOf(element), before: grids.before, selected: chosen });
  }, [grids, width, theme, chosen]);

  const point = (/** @type {PointerEvent} */ event) => {
    const column = Math.floor(event.offsetX / layout.pitch);
    const cell = Math.floor(event.offsetY / layout.pitch) * layout.columns + column;
    selected.value = column < layout.columns && cell >= 0 && cell < grid.count ? cell : null;
  };
  const move = (/** @type {KeyboardEvent} */ event) => {
    const last = grid.count - 1;
    const at = chosen ?? -1;
    /** @type {Record<string, number | null>} */
    const targets = {
      ArrowLeft: at - 1,
      ArrowRight: at + 1,
      ArrowUp: at - layout.columns,
      ArrowDown: chosen === null ? 0 : at + layout.columns,
      PageUp: at - 8 * layout.columns,
      PageDown: at + 8 * layout.columns,
      Home: 0,
      End: last,
      Escape: null,
    };
    if (!(event.key in targets)) return;
    event.preventDefault();
    const target = targets[event.key];
    selected.value = target === null ? null : Math.max(0, Math.min(last, target));
  };
  return html`<canvas
    ref=${canvas}
    tabindex="0"
    role="slider"
    aria-label=${`Block map of ${name}; the arrow keys move over it`}
    aria-valuemin="0"
    aria-valuemax=${grid.count - 1}
    aria-valuenow=${chosen ?? 0}
    aria-valuetext=${describeCell(grid, chosen ?? 0)}
    onPointerMove=${point}
    onPointerDown=${point}
    onPointerLeave=${(/** @type {PointerEvent} */ event) => event.pointerType === "mouse" && (selected.value = null)}
    onKeyDown=${move}
  ></canvas>`;
}

/** @param {{ grid: MapGrid, selected: number | null }} props */
function Legend({ grid, selected }) {
  const sign = grid.sampled ? "≈ " : "";
  const order = ["written", "local", "remote", "zero"];
  const sorts = [...grid.sorts].sort((a, b) => order.indexOf(a.kind) - order.indexOf(b.kind));
  return html`<p class="cell-text" data-testid="cell">
      ${
        selected === null || selected >= grid.count
          ? html`<span class="faint"
              >Each square is ${formatBytes(grid.cellBytes)} of the
              disk${grid.sampled ? "; drawn from samples, for there are too many pieces to show them all" : ""}. Point
              at one, or use the arrow keys.</span
            >`
          : describeCell(grid, selected)
      }
    </p>
    <ul class="legend">
      ${sorts.map((sort) => {
        const several = sorts.filter(({ kind }) => kind === sort.kind).length > 1;
        return html`<li key=${`${sort.kind} ${sort.owner}`}>
          <span class=${`swatch swatch-${colourOf(grid.sorts, sort)}`}></span>
          <span>
            ${kindWords[sort.kind]}
            ${several && sort.owner !== null && html` <code class="small" title=${sort.owner}>${sort.owner.slice(0, 8)}</code>`}
          </span>
          <b>${sign}${formatBytes(sort.bytes)}</b>
          <span class="faint">${sign}${formatShare(sort.bytes, grid.size)}</span>
        </li>`;
      })}
    </ul>`;
}

/** @param {{ samples: Sample[], size: number, width: number, theme: number }} props */
function History({ samples, size, width, theme }) {
  const canvas = useRef(/** @type {HTMLCanvasElement | null} */ (null));
  useEffect(() => {
    const element = canvas.current;
    if (element === null || width === 0) return;
    drawHistory(element, samples, { size, width, height: historyHeight, palette: paletteOf(element) });
  }, [samples, width, theme]);
  const seconds = (samples[samples.length - 1].atMs - samples[0].atMs) / 1000;
  return html`<figure class="history">
    <canvas ref=${canvas} aria-hidden="true"></canvas>
    <figcaption class="small faint">The last ${formatDuration(seconds)}, since this page was opened</figcaption>
  </figure>`;
}
