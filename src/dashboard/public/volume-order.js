import { ListOrder } from "./list-order.js";

/** @typedef {import("./volume-list.js").Volume} Volume */
/** @typedef {import("./rates.js").Rate} Rate */

/** @type {ListOrder<Volume, Rate>} */
export const volumeOrder = new ListOrder(
  [
    { key: "name", label: "Name", column: true, of: ({ name }) => name },
    { key: "state", label: "State", column: true, of: ({ state }) => (state === "ok" ? "zz" : state) },
    { key: "size", label: "Size", column: true, number: true, of: ({ size }) => size },
    { key: "written", label: "Written", column: true, number: true, of: ({ writtenBytes }) => writtenBytes },
    { key: "fetched", label: "Cached", column: true, number: true, of: ({ fetchedBytes }) => fetchedBytes },
    { key: "hydration", label: "Hydration", column: true, of: hydrated },
    { key: "traffic", label: "Traffic", column: true, number: true, of: (_, rate) => rate?.bytesPerSecond ?? 0 },
    { key: "clients", label: "Clients", column: true, number: true, of: ({ connections }) => connections },
    { key: "created", label: "Created", column: false, of: ({ createdAt }) => createdAt },
  ],
  ({ name, source, state, hydration }) => `${name} ${source ?? ""} ${state} ${hydration.state}`,
);

/** @param {Volume} volume */
function hydrated({ source, hydration }) {
  if (source === null) return 2;
  if (hydration.state === "detached") return 1;
  return hydration.totalBytes === 0 ? 0 : hydration.readyBytes / hydration.totalBytes;
}
