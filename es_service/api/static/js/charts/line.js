// One line over epochs, with a dot at each value.

import { s } from "../dom.js";
import * as format from "../format.js";
import { linear, niceTicks, sparse } from "./scales.js";

const LEFT = 48;
const BOTTOM = 26;
const TOP = 12;
const RIGHT = 14;

/**
 * @param width pixels to draw on.
 * @param points [{x, y, text, picked}], ascending in x; `picked` fills the dot.
 * @param options {title, tick: how to write a value, height, zero: whether the axis begins at 0, domain: [x0, x1]}
 */
export function lineChart(width, points, { title, tick = format.tick, height = 220, zero = false, domain = null }) {
  const values = points.map((point) => point.y);
  let low = zero ? 0 : Math.min(...values);
  let high = Math.max(...values);
  const margin = (high - low || Math.abs(high) || 1) * 0.08;
  low = zero ? 0 : low - margin;
  high += margin;
  const [first, last] = domain ?? [points[0].x, points.at(-1).x];
  const x = first === last ? () => (LEFT + width - RIGHT) / 2 : linear([first, last], [LEFT + 6, width - RIGHT]);
  const y = linear([low, high], [height - BOTTOM, TOP]);
  const path = points.map((point, index) => `${index ? "L" : "M"}${x(point.x).toFixed(1)} ${y(point.y).toFixed(1)}`).join("");
  const xs = [];
  for (let value = first; value <= last; value += 1) xs.push(value);
  const shown = sparse(xs.length, Math.max(1, Math.floor((width - LEFT) / 34)));
  const radius = points.length > 60 ? 2 : 3.5;
  return s(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": title },
    niceTicks(low, high, 6)
      .filter((value) => value >= low && value <= high)
      .map((value) => [
        s("line", { class: "grid", x1: LEFT, x2: width, y1: y(value), y2: y(value) }),
        s("text", { x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, tick(value)),
      ]),
    xs.map((value, index) => shown(index) && s("text", { x: x(value), y: height - 8, "text-anchor": "middle" }, String(value))),
    s("path", { class: "line", d: path }),
    points.map((point) =>
      s("circle", { class: point.picked ? "dot picked" : "dot", cx: x(point.x), cy: y(point.y), r: radius }, s("title", {}, point.text)),
    ),
  );
}
