// Stacked bars, one an epoch: where its seconds went, and the dashed line of what it would have taken in full.

import { s } from "../dom.js";
import * as format from "../format.js";
import { linear, niceTicks, sparse } from "./scales.js";

const HEIGHT = 220;
const LEFT = 44;
const BOTTOM = 26;
const TOP = 10;

/**
 * @param width pixels to draw on.
 * @param epochs [{epoch, parts: {name: seconds}, full: seconds or null, text}], ascending.
 * @param names the parts, bottom first; each is a class of charts.css.
 * @param title what a screen reader says of the whole.
 */
export function stackedBars(width, epochs, names, title) {
  const totals = epochs.map((one) => names.reduce((sum, name) => sum + (one.parts[name] ?? 0), 0));
  const highest = Math.max(1e-9, ...totals, ...epochs.map((one) => one.full ?? 0)) * 1.04;
  const y = linear([0, highest], [HEIGHT - BOTTOM, TOP]);
  const step = (width - LEFT - 4) / Math.max(epochs.length, 1);
  const bar = Math.max(1, Math.min(step - Math.min(6, step * 0.25), 44));
  const shown = sparse(epochs.length, Math.max(1, Math.floor((width - LEFT) / 34)));

  const parts = epochs.map((one, index) => {
    const middle = LEFT + step * (index + 0.5);
    let below = 0;
    const rectangles = names.map((name) => {
      const size = one.parts[name] ?? 0;
      const top = y(below + size);
      const height = y(below) - top;
      below += size;
      return height > 0.2 && s("rect", { class: name, x: middle - bar / 2, y: top, width: bar, height });
    });
    return s(
      "g",
      {},
      rectangles,
      one.full !== null && one.full !== undefined &&
        s("line", { class: "full", x1: middle - step / 2 + 1, x2: middle + step / 2 - 1, y1: y(one.full), y2: y(one.full) }),
      shown(index) && s("text", { x: middle, y: HEIGHT - 8, "text-anchor": "middle" }, String(one.epoch)),
      s("rect", { class: "hit", x: middle - step / 2, y: TOP, width: step, height: HEIGHT - TOP - BOTTOM }, s("title", {}, one.text)),
    );
  });

  const grid = niceTicks(0, highest, 4).map((tick) => [
    s("line", { class: "grid", x1: LEFT, x2: width, y1: y(tick), y2: y(tick) }),
    s("text", { x: LEFT - 8, y: y(tick) + 4, "text-anchor": "end" }, `${format.tick(tick)} s`),
  ]);
  return s(
    "svg",
    { viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, role: "img", "aria-label": title },
    grid,
    parts,
    s("line", { class: "axis", x1: LEFT, x2: width, y1: y(0), y2: y(0) }),
  );
}
