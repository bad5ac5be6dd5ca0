import { signal } from "@preact/signals";

/* What the list shows and in which order; kept while another page is looked at. */

/** @typedef {import("./volume-list.js").Volume} Volume */
/** @typedef {import("./rates.js").Rate} Rate */

/** Rows of a page. */
export const pageRows = 50;

export const filterText = signal("");
export const pageIndex = signal(0);
export const sortBy = signal("name");
export const sortDown = signal(false);

/**
 * @typedef {object} SortKey
 * @property {string} key
 * @property {string} label
 * @property {boolean} column whether the table has a column for it
 * @property {boolean} [number] right-aligned; the largest first
 * @property {(volume: Volume, rate: Rate | undefined) => string | number} of
 */

/** @type {readonly SortKey[]} */
export const sortKeys = [
  { key: "name", label: "Name", column: true, of: ({ name }) => name },
  { key: "state", label: "State", column: true, of: ({ state }) => (state === "ok" ? "zz" : state) },
  { key: "size", label: "Size", column: true, number: true, of: ({ size }) => size },
  { key: "written", label: "Written", column: true, number: true, of: ({ writtenBytes }) => writtenBytes },
  { key: "fetched", label: "Cached", column: true, number: true, of: ({ fetchedBytes }) => fetchedBytes },
  { key: "hydration", label: "Hydration", column: true, of: hydrated },
  { key: "traffic", label: "Traffic", column: true, number: true, of: (_, rate) => rate?.bytesPerSecond ?? 0 },
  { key: "clients", label: "Clients", column: true, number: true, of: ({ connections }) => connections },
  { key: "created", label: "Created", column: false, of: ({ createdAt }) => createdAt },
];

/** @param {Volume} volume */
function hydrated({ source, hydration }) {
  if (source === null) return 2;
  if (hydration.state === "detached") return 1;
  return hydration.totalBytes === 0 ? 0 : hydration.readyBytes / hydration.totalBytes;
}

/**
 * What matches the filter, in the chosen order; equals by name.
 * @param {readonly Volume[]} all ordered by name
 * @param {ReadonlyMap<string, Rate>} rates
 */
export function sortVolumes(all, rates) {
  const words = filterText.value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = all.filter(({ name, source, state, hydration }) => {
    const text = `${name} ${source ?? ""} ${state} ${hydration.state}`.toLowerCase();
    return words.every((word) => text.includes(word));
  });
  const chosen = sortKeys.find(({ key }) => key === sortBy.value) ?? sortKeys[0];
  if (chosen === undefined) return found;
  const sign = sortDown.value ? -1 : 1;
  const marks = new Map(found.map((volume) => [volume, chosen.of(volume, rates.get(volume.name))]));
  return found.sort((a, b) => {
    const [x, y] = [marks.get(a) ?? 0, marks.get(b) ?? 0];
    return sign * (x < y ? -1 : Number(x > y));
  });
}
