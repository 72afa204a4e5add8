// One sample, in a dialog: the sample itself, all that the table says of it, and its history.

import { address } from "../address.js";
import { ApiError, get, isAborted, Latest } from "../api.js";
import { lineChart } from "../charts/line.js";
import { byId, drawn, h, show } from "../dom.js";
import * as format from "../format.js";
import { kindOf, preview } from "./preview.js";

const NAMES = {
  w: "weight",
  s: "score",
  last_loss: "last loss",
  loss_mean: "mean loss",
  loss_std: "variability of the loss",
  suspicion: "suspicion",
  visits: "visits",
  selected: "times picked",
  picked_share: "picked share",
  last_step: "last seen at step",
  age: "steps since then",
  correct: "last prediction right",
  confidence: "confidence",
  variance: "moving variance",
};

export class SampleDialog {
  constructor() {
    this.dialog = byId("sample");
    this.latest = new Latest();
    this.neighbours = [];
    this.dialog.addEventListener("close", () => address.set({ sample: null }));
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
    this.dialog.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") this.#go(-1);
      if (event.key === "ArrowRight") this.#go(1);
    });
  }

  /** Open it as the address says, or close it. */
  async follow(run) {
    const asked = address.get("sample");
    if (asked === null || !/^\d+$/.test(asked)) {
      if (this.dialog.open) this.dialog.close();
      return;
    }
    await this.show(run, Number(asked), this.neighbours);
  }

  /** Show a sample; `neighbours` are the ids that the arrow keys go through. */
  async open(run, id, neighbours = []) {
    address.set({ sample: id }, { step: !this.dialog.open });
    await this.show(run, id, neighbours);
  }

  /** The list on the page is there: a sample that the address had opened can be gone on from, where it is in it. */
  offer(ids) {
    if (!this.dialog.open || this.neighbours.includes(this.id) || !ids.includes(this.id)) return;
    this.neighbours = ids;
    this.#keepingFocus(() => this.dialog.querySelector("header").replaceWith(this.#header()));
  }

  async show(run, id, neighbours) {
    this.run = run;
    this.id = id;
    this.neighbours = neighbours;
    this.#frame(h("p", { class: "muted" }, "…"));
    if (!this.dialog.open) this.dialog.showModal();
    try {
      const [answer, history] = await this.latest.run((signal) =>
        Promise.all([get(["runs", run.run, "samples", id], {}, { signal }), get(["runs", run.run, "samples", id, "history"], {}, { signal })]),
      );
      this.#render(answer, history);
    } catch (error) {
      if (isAborted(error)) return;
      const text = error instanceof ApiError ? [error.message, error.hint].filter(Boolean).join(": ") : "The server does not answer.";
      this.#frame(h("p", { class: "notice", "data-kind": "away" }, text));
    }
  }

  #frame(...content) {
    this.#keepingFocus(() => show(this.dialog, this.#header(), h("div", {}, content)));
  }

  #keepingFocus(change) {
    const focused = this.dialog.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") : null;
    change();
    if (focused !== null) this.dialog.querySelector(`[aria-label="${focused}"]:enabled`)?.focus();
  }

  #header() {
    const at = this.neighbours.indexOf(this.id);
    const way = (step, text, sign) =>
      h("button", { type: "button", class: "quiet", "aria-label": text, disabled: at < 0 || this.neighbours[at + step] === undefined, onclick: () => this.#go(step) }, sign);
    return h(
      "header",
      {},
      h("h2", { id: "sample-title" }, `Sample ${format.count(this.id)}`),
      at >= 0 && way(-1, "Previous sample", "←"),
      at >= 0 && way(1, "Next sample", "→"),
      h("button", { type: "button", "aria-label": "Close", onclick: () => this.dialog.close() }, "Close"),
    );
  }

  #go(step) {
    const at = this.neighbours.indexOf(this.id);
    const next = at < 0 ? undefined : this.neighbours[at + step];
    if (next !== undefined) this.open(this.run, next, this.neighbours);
  }

  #render({ sample, rank }, history) {
    const pairs = Object.entries(NAMES)
      .filter(([name]) => sample[name] !== undefined)
      .map(([name, title]) => [title, name === "picked_share" ? format.percent(sample[name]) : format.value(sample[name])]);
    if (sample.label !== undefined && sample.label !== null) pairs.unshift(["label", sample.label]);
    if (rank?.w) pairs.push(["rank by weight", `${format.count(rank.w.position)} of ${format.count(this.run.num_samples)}`]);
    const chart = h("div", { class: "chart" });
    this.#frame(
      h(
        "div",
        { class: "one", "data-kind": kindOf(this.run) },
        preview(this.run, this.id, `${sample.label ?? "sample"} ${this.id}`),
        h("div", { class: "pairs" }, pairs.flatMap(([name, text]) => [h("span", {}, name), h("span", {}, text)])),
      ),
      h("section", { class: "history" }, h("h3", {}, "Loss history"), chart),
    );
    const points = pointsOf(history);
    if (points.length === 0) {
      show(chart, h("p", { class: "muted small" }, "No observation of this sample is stored."));
      return;
    }
    const note =
      history.source === "journal" ? "A filled dot: picked and trained on." : "This run has no journal: these are the last losses at the end of the newest epochs. A filled dot: picked since the previous dot.";
    show(chart, h("div"), h("p", { class: "small muted" }, note, history.truncated && " Older observations are left out."));
    const title = `Loss at ${format.plural(points.length, "observation")}, from ${format.value(points[0].y)} to ${format.value(points.at(-1).y)}`;
    drawn(chart, (width) => chart.firstChild.replaceChildren(lineChart(width, points, { title, height: 180, zero: true })));
  }
}

/** The observations of a history, or what snapshots say where there is no journal. */
function pointsOf(history) {
  const { epoch, loss, selected } = history.points;
  if (loss.length > 0) {
    return loss.map((value, index) => ({
      x: epoch[index] + 1,
      y: value,
      picked: selected[index],
      text: `epoch ${epoch[index] + 1}: loss ${format.value(value)}, ${selected[index] ? "picked" : "not picked"}`,
    }));
  }
  const known = history.snapshots.filter((one) => one.last_loss !== null);
  return known.map((one, index) => ({
    x: one.epoch,
    y: one.last_loss,
    picked: one.selected > (known[index - 1]?.selected ?? one.selected - 1),
    text: `end of epoch ${one.epoch}: loss ${format.value(one.last_loss)}, picked ${format.plural(one.selected, "time")}`,
  }));
}
