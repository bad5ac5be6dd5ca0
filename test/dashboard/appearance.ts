import assert from "node:assert/strict";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import type { Page } from "./browser.ts";

const pictures = join(import.meta.dirname, "../out/dashboard");

/** Texts whose colour is too near to what is behind them (WCAG 2.2, 1.4.3), controls that can't be used left out. */
const paleTexts = `(() => {
  const parse = (colour) => {
    const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number);
    return { rgb: [r, g, b], a };
  };
  const behind = (element) => {
    for (let at = element; at !== null; at = at.parentElement) {
      const { rgb, a } = parse(getComputedStyle(at).backgroundColor);
      if (a === 1) return rgb;
    }
    return [255, 255, 255];
  };
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const pale = [];
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data.trim()).join(" ");
    if (text.trim() === "" || !element.checkVisibility() || element.closest(":disabled, script, noscript, option")) continue;
    const { color, fontSize, fontWeight } = getComputedStyle(element);
    const [light, dark] = [luminance(parse(color).rgb), luminance(behind(element))].sort((a, b) => b - a);
    const ratio = (light + 0.05) / (dark + 0.05);
    const large = parseFloat(fontSize) >= 24 || (parseFloat(fontSize) >= 18.66 && Number(fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) pale.push(text.slice(0, 40) + ": " + ratio.toFixed(2));
  }
  return [...new Set(pale)];
})()`;

/** Controls that have no name for those who can't see them. */
const namelessControls = `[...document.querySelectorAll("button, input, select, a, canvas, dialog, [role=progressbar]")]
  .filter((each) => each.checkVisibility())
  .filter((each) => !(each.getAttribute("aria-label") || each.innerText?.trim() || each.labels?.[0]?.innerText.trim()))
  .map((each) => each.outerHTML.slice(0, 80))`;

const overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth";

/** Takes a picture, to be looked at, and checks what a program can tell of it. */
export async function inspect(page: Page, name: string, { full = true } = {}): Promise<void> {
  await mkdir(pictures, { recursive: true });
  await page.screenshot(join(pictures, `${name}.png`), { full });
  assert.equal(await page.evaluate(overflow), 0, `${name} is wider than the screen`);
  assert.deepEqual(await page.evaluate(paleTexts), [], name);
  assert.deepEqual(await page.evaluate(namelessControls), [], name);
}
