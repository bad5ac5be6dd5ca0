import { useEffect } from "preact/hooks";

/*
 * A list with many controls is one stop of the Tab key; the arrow keys go between rows and between the controls of a row,
 * Home and End to the first and the last of a row, with Ctrl of the list (the keys of ARIA's grid).
 *
 * At any time exactly one control can be tabbed to. It is the one that had the focus last; when its row goes, the one in
 * the row that took its place.
 */

const controls = "a[href], button:not(:disabled)";
const pageRows = 10;

/** @param {import("preact").RefObject<HTMLElement | null>} list its rows have the role `row` */
export function useRoving(list) {
  useEffect(() => {
    const element = list.current;
    if (element === null) return undefined;
    const roving = new Roving(element);
    return () => roving.end();
  }, []);
}

class Roving {
  /** @type {HTMLElement} */
  #list;
  #row = 0;
  #column = 0;
  #observer = new MutationObserver(() => this.#settle());
  #onFocus = (/** @type {FocusEvent} */ event) => this.#follow(event.target);
  #onKey = (/** @type {KeyboardEvent} */ event) => this.#press(event);

  /** @param {HTMLElement} list */
  constructor(list) {
    this.#list = list;
    list.addEventListener("focusin", this.#onFocus);
    list.addEventListener("keydown", this.#onKey);
    this.#observer.observe(list, { childList: true, subtree: true });
    this.#settle();
  }

  end() {
    this.#observer.disconnect();
    this.#list.removeEventListener("focusin", this.#onFocus);
    this.#list.removeEventListener("keydown", this.#onKey);
  }

  /** The controls of each row that has any. @returns {HTMLElement[][]} */
  #grid() {
    const rows = [...this.#list.querySelectorAll("[role=row]")];
    return rows
      .map((row) => /** @type {HTMLElement[]} */ ([...row.querySelectorAll(controls)]))
      .filter(({ length }) => length > 0);
  }

  /** Where the focus is, if it is here, else where it was: that may be tabbed to, and nothing else. */
  #settle() {
    const grid = this.#grid();
    const at = grid.findIndex((row) => row.some((control) => control === document.activeElement));
    if (at >= 0) this.#row = at;
    this.#row = Math.max(0, Math.min(this.#row, grid.length - 1));
    const row = grid[this.#row] ?? [];
    const current =
      row.find((control) => control === document.activeElement) ?? row[Math.min(this.#column, row.length - 1)];
    for (const control of grid.flat()) control.tabIndex = control === current ? 0 : -1;
  }

  /** @param {EventTarget | null} target */
  #follow(target) {
    const row = this.#grid().find((each) => each.some((control) => control === target));
    if (row === undefined) return;
    this.#column = row.findIndex((control) => control === target);
    this.#settle();
  }

  /** @param {KeyboardEvent} event */
  #press(event) {
    if (event.altKey || event.metaKey || event.shiftKey) return;
    const grid = this.#grid();
    const last = grid.length - 1;
    const end = (grid[this.#row] ?? []).length - 1;
    const { ctrlKey, key } = event;
    const [row, column] =
      {
        ArrowUp: [this.#row - 1, this.#column],
        ArrowDown: [this.#row + 1, this.#column],
        PageUp: [Math.max(0, this.#row - pageRows), this.#column],
        PageDown: [Math.min(last, this.#row + pageRows), this.#column],
        ArrowLeft: [this.#row, this.#column - 1],
        ArrowRight: [this.#row, this.#column + 1],
        Home: ctrlKey ? [0, this.#column] : [this.#row, 0],
        End: ctrlKey ? [last, this.#column] : [this.#row, end],
      }[key] ?? [];
    if (row === undefined || column === undefined || (ctrlKey && !["Home", "End"].includes(key))) return;
    event.preventDefault(); // also at an end: the page does not scroll away under the list
    const controlsThere = grid[row];
    if (controlsThere === undefined || column < 0) return;
    const [from, wanted] = [this.#row, this.#column];
    controlsThere[Math.min(column, controlsThere.length - 1)]?.focus();
    if (row !== from) this.#column = wanted; // a short row on the way does not change it
  }
}
