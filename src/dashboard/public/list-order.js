import { signal } from "@preact/signals";

/**
 * @template Item, Extra
 * @typedef {object} SortKey
 * @property {string} key
 * @property {string} label
 * @property {boolean} column whether the table has a column for it
 * @property {boolean} [number] right-aligned; the largest first
 * @property {(item: Item, extra: Extra | undefined) => string | number} of
 */

/** Rows of a page. */
export const pageRows = 50;

/**
 * What a list shows and in which order; kept while another page is looked at.
 * @template Item, [Extra=undefined]
 */
export class ListOrder {
  filterText = signal("");
  pageIndex = signal(0);
  sortBy;
  sortDown = signal(false);
  /** @type {readonly SortKey<Item, Extra>[]} */
  sortKeys;
  /** @type {(item: Item) => string} */
  #textOf;

  /**
   * @param {readonly SortKey<Item, Extra>[]} sortKeys the list is ordered by the first one until another is chosen
   * @param {(item: Item) => string} textOf where the words of the filter are looked for
   */
  constructor(sortKeys, textOf) {
    this.sortKeys = sortKeys;
    this.sortBy = signal(sortKeys[0]?.key ?? "");
    this.#textOf = textOf;
  }

  /** @param {string} text */
  filter(text) {
    this.filterText.value = text;
    this.pageIndex.value = 0;
  }

  /** Orders by a key; by the same one again, the other way round. @param {string} key */
  choose(key) {
    if (this.sortBy.value === key) this.sortDown.value = !this.sortDown.value;
    else {
      this.sortBy.value = key;
      this.sortDown.value = this.sortKeys.find((known) => known.key === key)?.number === true;
    }
    this.pageIndex.value = 0;
  }

  /**
   * What matches the filter, in the chosen order; equals stay as they were.
   * @param {readonly Item[]} all
   * @param {(item: Item) => Extra | undefined} [extraOf]
   */
  arrange(all, extraOf = () => undefined) {
    const words = this.filterText.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = all.filter((item) => {
      const text = this.#textOf(item).toLowerCase();
      return words.every((word) => text.includes(word));
    });
    const chosen = this.sortKeys.find(({ key }) => key === this.sortBy.value);
    if (chosen === undefined) return found;
    const sign = this.sortDown.value ? -1 : 1;
    const marks = new Map(found.map((item) => [item, chosen.of(item, extraOf(item))]));
    return found.sort((a, b) => {
      const [x, y] = [marks.get(a) ?? 0, marks.get(b) ?? 0];
      return sign * (x < y ? -1 : Number(x > y));
    });
  }

  /**
   * The page that is looked at.
   * @param {readonly Item[]} found
   */
  page(found) {
    const pages = Math.max(1, Math.ceil(found.length / pageRows));
    const index = Math.min(this.pageIndex.value, pages - 1);
    return { pages, index, shown: found.slice(index * pageRows, (index + 1) * pageRows) };
  }
}
