// Histograms of one column, one row an epoch, the newest at the bottom: how a distribution moves.

import { s } from "../dom.js";
import * as format from "../format.js";
import { linear, logarithmic, sparse } from "./scales.js";

const LEFT = 44;
const BOTTOM = 26;
const RIGHT = 6;

/**
 * @param width pixels to draw on.
 * @param rows [{epoch, edges: [bins + 1], counts: [bins], median, text}], ascending in epoch.
 * @param options {title, log: whether the axis of values is logarithmic}
 */
export function ridges(width, rows, { title, log = false }) {
  const low = Math.min(...rows.map((row) => row.edges[0]));
  const high = Math.max(...rows.map((row) => row.edges.at(-1)));
  const positive = Math.min(...rows.map((row) => row.edges.find((edge) => edge > 0) ?? Infinity));
  const useLog = log && Number.isFinite(positive) && high > positive;
  const range = [LEFT + 4, width - RIGHT];
  const x = useLog ? logarithmic([positive, high], range) : linear([low, high], range);
  const step = Math.max(14, Math.min(40, 200 / rows.length));
  const overlap = rows.length > 1 ? 1.9 : 4;
  const top = step * overlap;
  const height = Math.ceil(top + step * (rows.length - 1) + BOTTOM + 8);
  const tallest = Math.max(1, ...rows.flatMap((row) => row.counts));
  const shown = sparse(rows.length, Math.max(1, Math.floor((height - BOTTOM) / 15)));

  const shapes = rows.map((row, index) => {
    const base = top + step * index;
    const tall = linear([0, Math.sqrt(tallest)], [0, step * overlap - 4]);
    let path = `M${x(row.edges[0]).toFixed(1)} ${base}`;
    row.counts.forEach((value, bin) => {
      const level = (base - tall(Math.sqrt(value))).toFixed(1);
      path += `L${x(row.edges[bin]).toFixed(1)} ${level}L${x(row.edges[bin + 1]).toFixed(1)} ${level}`;
    });
    path += `L${x(row.edges.at(-1)).toFixed(1)} ${base}Z`;
    const latest = index === rows.length - 1;
    return s(
      "g",
      {},
      (shown(index) || latest) &&
        s("text", { x: LEFT - 8, y: base + 1, "text-anchor": "end", class: latest ? "strong" : null }, String(row.epoch)),
      s("path", { class: latest ? "ridge latest" : "ridge", d: path }, s("title", {}, row.text)),
      row.median !== null && row.median !== undefined &&
        s("line", { class: "median", x1: x(row.median), x2: x(row.median), y1: base - 5, y2: base + 1 }),
    );
  });

  const floor = height - BOTTOM;
  const ticks = x.ticks(Math.max(2, Math.floor(width / 90))).filter((tick) => x(tick) >= LEFT && x(tick) <= width - RIGHT + 1);
  return s(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": title },
    ticks.map((tick) => [
      s("line", { class: "grid", x1: x(tick), x2: x(tick), y1: 4, y2: floor }),
      s("text", { x: Math.min(x(tick), width - 14), y: height - 8, "text-anchor": "middle" }, format.tick(tick)),
    ]),
    shapes,
    s("line", { class: "axis", x1: LEFT, x2: width, y1: floor, y2: floor }),
  );
}
