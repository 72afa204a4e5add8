// The data map's panel: what is drawn, what a hover shows, what a click does.

import { get, isAborted, Latest } from "../api.js";
import { DataMap } from "../charts/map.js";
import { byId, empty, h, show } from "../dom.js";
import * as format from "../format.js";
import { preview } from "./preview.js";

const POINTS = 4000;

export class MapPanel {
  /**
   * @param filters which samples.
   * @param onPick called with the id of a sample to show.
   */
  constructor(filters, onPick) {
    this.filters = filters;
    this.onPick = onPick;
    this.latest = new Latest();
    this.map = null;
    this.run = null;
    this.tip = h("div", { class: "tip", hidden: true });
  }

  async refresh(run) {
    this.run = run;
    let answer;
    try {
      answer = await this.latest.run((signal) => get(["runs", run.run, "map"], { points: POINTS, where: this.filters.where }, { signal }));
    } catch (error) {
      if (isAborted(error)) return;
      throw error;
    }
    this.#show(answer);
  }

  #show(answer) {
    const place = byId("map");
    const marks = marksOf(answer.points);
    if (marks.length === 0) {
      this.map = null;
      const filtered = this.filters.where.length > 0;
      show(place, empty(filtered ? "No sample matches" : "Nothing observed yet", filtered ? "Widen the filters, or clear them." : "Samples appear here once their loss has been observed."));
      return;
    }
    if (this.map === null) {
      const inside = h("div");
      this.note = h("p", { class: "small muted" });
      show(place, inside, this.note);
      this.map = new DataMap(inside, {
        xLabel: "variability of the loss",
        yLabel: "mean loss",
        onHover: (mark, at) => this.#hover(mark, at),
        onPick: (mark) => this.onPick(mark.id),
        describe: (mark) => describe(mark),
      });
      this.map.frame.append(this.tip);
    }
    this.map.update(marks);
    const samples = marks.reduce((sum, mark) => sum + mark.count, 0);
    this.note.textContent = [
      answer.binned ? `${format.plural(samples, "sample")} in ${format.plural(marks.length, "mark")}, larger where there are more` : format.plural(samples, "sample"),
      answer.num_unseen > 0 && `${format.count(answer.num_unseen)} never observed are not drawn`,
      (answer.x.clipped > 0 || answer.y.clipped > 0) && "the outermost 0.1 % are shown at the edge",
      "both axes are square roots",
    ]
      .filter(Boolean)
      .join("; ")
      .concat(".");
  }

  #hover(mark, at) {
    this.tip.hidden = mark === null;
    if (mark === null) return;
    const one = mark.count === 1;
    show(
      this.tip,
      preview(this.run, mark.id, ""),
      h("strong", {}, mark.label ?? `sample ${format.count(mark.id)}`),
      h("div", {}, one ? `sample ${format.count(mark.id)}` : `${format.count(mark.count)} samples; the one with the highest weight is ${format.count(mark.id)}`),
      h("div", {}, `mean loss ${format.value(mark.y)}, varies by ${format.value(mark.x)}`),
      h("div", {}, `picked after ${format.percent(mark.share, 0)} of visits`),
    );
    const room = this.map.frame.getBoundingClientRect();
    const tip = this.tip.getBoundingClientRect();
    const left = at.x + 14 + tip.width > room.width ? at.x - 14 - tip.width : at.x + 14;
    const top = Math.min(Math.max(0, at.y - tip.height / 2), Math.max(0, room.height - tip.height));
    this.tip.style.transform = `translate(${Math.max(0, Math.round(left))}px, ${Math.round(top)}px)`;
  }
}

function marksOf(points) {
  return points.id.map((id, index) => ({
    id,
    x: points.loss_std[index],
    y: points.loss_mean[index],
    share: points.picked_share[index],
    count: points.count[index],
    label: points.label?.[index] ?? null,
  }));
}

function describe(mark) {
  const who = mark.count === 1 ? `Sample ${mark.id}` : `${mark.count} samples, the heaviest ${mark.id}`;
  return `${who}${mark.label === null ? "" : `, ${mark.label}`}: mean loss ${format.value(mark.y)}, varies by ${format.value(mark.x)}, picked after ${format.percent(mark.share, 0)} of visits`;
}
