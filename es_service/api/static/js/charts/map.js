// The data map: points or bins on a canvas, found by mouse, finger and arrow keys alike.

import { colour, drawn, h } from "../dom.js";
import * as format from "../format.js";
import { linear, rooted } from "./scales.js";

const LEFT = 48;
const BOTTOM = 40;
const TOP = 12;
const RIGHT = 10;
const REACH = 16; // pixels around the pointer in which a mark is found
const SHARES = ["--share-0", "--share-1", "--share-2", "--share-3", "--share-4"];

/**
 * A map in an element. `update(marks)` shows other marks, in place.
 *
 * A mark: {id, x, y, share, count}: one sample, or the mean of `count` that lie close together.
 *
 * @param place the element to draw in.
 * @param options {onHover(mark or null, {x, y}), onPick(mark), describe(mark), xLabel, yLabel}
 */
export class DataMap {
  constructor(place, options) {
    this.options = options;
    this.marks = [];
    this.current = null;
    this.canvas = h("canvas", {
      tabindex: 0,
      role: "application",
      "aria-roledescription": "data map",
      "aria-label": "Data map. Arrow keys go from sample to sample, Enter shows one.",
    });
    this.said = h("p", { class: "unseen", "aria-live": "polite" });
    this.frame = h("div", { class: "map" }, this.canvas);
    place.replaceChildren(this.frame, this.said);
    this.redraw = drawn(this.frame, (width) => this.#draw(width));
    addEventListener("themechange", () => this.redraw());
    this.canvas.addEventListener("pointermove", (event) => this.#point(event));
    this.canvas.addEventListener("pointerleave", () => this.#choose(null));
    this.canvas.addEventListener("blur", () => this.#choose(null));
    this.canvas.addEventListener("click", (event) => {
      this.#point(event);
      if (this.current) options.onPick(this.current);
    });
    this.canvas.addEventListener("keydown", (event) => this.#key(event));
  }

  update(marks) {
    const kept = this.current?.id;
    this.marks = marks;
    this.current = marks.find((mark) => mark.id === kept) ?? null;
    if (this.current === null) this.options.onHover(null);
    this.redraw();
  }

  #scales(width, height) {
    const rightmost = Math.max(1e-6, ...this.marks.map((mark) => mark.x));
    const highest = Math.max(1e-6, ...this.marks.map((mark) => mark.y));
    this.x = rooted([0, rightmost * 1.03], [LEFT, width - RIGHT]);
    this.y = rooted([0, highest * 1.05], [height - BOTTOM, TOP]);
  }

  #draw(width) {
    const height = Math.round(Math.max(300, Math.min(520, width * 0.56)));
    const ratio = devicePixelRatio || 1;
    this.canvas.width = width * ratio;
    this.canvas.height = height * ratio;
    this.canvas.style.height = `${height}px`;
    const pen = this.canvas.getContext("2d");
    pen.scale(ratio, ratio);
    this.#scales(width, height);
    this.#axes(pen, width, height);
    const ramp = rampOf(SHARES.map(colour));
    const ordered = [...this.marks].sort((one, other) => other.count - one.count);
    for (const mark of ordered) {
      pen.globalAlpha = mark.count > 1 ? 0.6 : 0.8;
      pen.fillStyle = ramp(mark.share ?? 0);
      pen.beginPath();
      pen.arc(this.x(mark.x), this.y(mark.y), radius(mark.count), 0, 7);
      pen.fill();
    }
    pen.globalAlpha = 1;
    if (this.current) this.#ring(pen, this.current);
  }

  #ring(pen, mark) {
    pen.strokeStyle = colour("--ink");
    pen.lineWidth = 2;
    pen.beginPath();
    pen.arc(this.x(mark.x), this.y(mark.y), radius(mark.count) + 4, 0, 7);
    pen.stroke();
  }

  #axes(pen, width, height) {
    const [line, muted] = [colour("--line"), colour("--muted")];
    pen.font = `12px ${getComputedStyle(document.body).fontFamily}`;
    pen.lineWidth = 1;
    pen.strokeStyle = line;
    pen.fillStyle = muted;
    pen.textAlign = "center";
    let free = -Infinity;
    for (const tick of this.x.ticks(Math.max(3, Math.floor(width / 110)))) {
      const at = Math.round(this.x(tick)) + 0.5;
      if (at > width - RIGHT) continue;
      stroke(pen, at, TOP, at, height - BOTTOM);
      if (at - free > 38) {
        pen.fillText(format.tick(tick), at, height - BOTTOM + 16);
        free = at;
      }
    }
    pen.textAlign = "right";
    free = Infinity;
    for (const tick of this.y.ticks(5)) {
      const at = Math.round(this.y(tick)) + 0.5;
      if (at < TOP) continue;
      stroke(pen, LEFT, at, width - RIGHT, at);
      if (free - at > 16) {
        pen.fillText(format.tick(tick), LEFT - 8, at + 4);
        free = at;
      }
    }
    pen.textAlign = "center";
    pen.fillText(this.options.xLabel, (LEFT + width - RIGHT) / 2, height - 6);
    pen.save();
    pen.translate(12, (TOP + height - BOTTOM) / 2);
    pen.rotate(-Math.PI / 2);
    pen.fillText(this.options.yLabel, 0, 0);
    pen.restore();
  }

  #point(event) {
    const box = this.canvas.getBoundingClientRect();
    const [px, py] = [event.clientX - box.left, event.clientY - box.top];
    let [best, least] = [null, REACH * REACH];
    for (const mark of this.marks) {
      const distance = (this.x(mark.x) - px) ** 2 + (this.y(mark.y) - py) ** 2;
      if (distance < least) [best, least] = [mark, distance];
    }
    this.#choose(best);
  }

  #choose(mark) {
    if (mark === this.current) return;
    this.current = mark;
    this.redraw();
    this.options.onHover(mark, mark && { x: this.x(mark.x), y: this.y(mark.y) });
  }

  #key(event) {
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key === "Enter" && this.current) {
      this.options.onPick(this.current);
    } else if (event.key === "Escape") {
      this.#choose(null);
    } else if (event.key in ways && this.marks.length > 0) {
      this.#choose(this.current ? this.#next(...ways[event.key]) : this.#middle());
      this.said.textContent = this.options.describe(this.current);
    } else {
      return;
    }
    event.preventDefault();
  }

  /** The nearest mark in a direction: what lies off to the side counts twice. */
  #next(dx, dy) {
    let [best, least] = [this.current, Infinity];
    for (const mark of this.marks) {
      const [x, y] = [this.x(mark.x) - this.x(this.current.x), this.y(mark.y) - this.y(this.current.y)];
      const along = x * dx + y * dy;
      const aside = Math.abs(x * dy) + Math.abs(y * dx);
      if (along > 0.5 && along + 2 * aside < least) [best, least] = [mark, along + 2 * aside];
    }
    return best;
  }

  #middle() {
    const byX = [...this.marks].sort((one, other) => one.x - other.x);
    return byX[Math.floor(byX.length / 2)];
  }
}

/** Larger where there are more samples, but slowly: a thousand are four times as wide as one. */
function radius(count) {
  return Math.min(12, 2.3 * count ** 0.2);
}

function stroke(pen, x0, y0, x1, y1) {
  pen.beginPath();
  pen.moveTo(x0, y0);
  pen.lineTo(x1, y1);
  pen.stroke();
}

/** A colour for each share in [0, 1], between these colours at equal distances. */
function rampOf(colours) {
  const stops = colours.map((text) => text.match(/[\d.]+/g).slice(0, 3).map(Number));
  const along = linear([0, 1], [0, stops.length - 1]);
  const table = Array.from({ length: 65 }, (_, index) => {
    const at = along(index / 64);
    const low = Math.min(Math.floor(at), stops.length - 2);
    const [from, to, part] = [stops[low], stops[low + 1], at - low];
    return `rgb(${from.map((value, channel) => Math.round(value + part * (to[channel] - value))).join(" ")})`;
  });
  return (share) => table[Math.round(64 * Math.min(1, Math.max(0, share)))];
}
