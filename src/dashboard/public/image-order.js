import { ListOrder } from "./list-order.js";

/** @typedef {import("./image-list.js").Blob} Blob */

/** @type {ListOrder<Blob>} */
export const imageOrder = new ListOrder(
  [
    { key: "source", label: "Image", column: true, of: ({ source }) => source },
    { key: "state", label: "State", column: true, of: stateRank },
    { key: "size", label: "Size", column: true, number: true, of: ({ size }) => size },
    { key: "ready", label: "Cached", column: true, number: true, of: ({ readyBytes }) => readyBytes },
    { key: "disk", label: "On disk", column: true, number: true, of: ({ diskBytes }) => diskBytes },
    { key: "users", label: "Volumes", column: true, of: ({ volumes }) => volumes.length },
    { key: "used", label: "Used", column: false, of: ({ usedAt }) => usedAt ?? "" },
  ],
  ({ source, format, identity, volumes, kept, sourceState }) =>
    `${source} ${format} ${identity ?? ""} ${volumes.join(" ")} ${kept ? "pinned" : ""} ${sourceState.state}`,
);

/** What needs attention comes first. @param {Blob} blob */
function stateRank({ sourceState, pinned, kept }) {
  if (sourceState.state === "failing") return 0;
  if (!pinned) return 1;
  return kept ? 2 : 3;
}
