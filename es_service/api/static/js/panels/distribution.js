// How a column is distributed, epoch by epoch.

import { address } from "../address.js";
import { get, isAborted, Latest } from "../api.js";
import { ridges } from "../charts/ridges.js";
import { byId, drawn, empty, h, show, TableBelow } from "../dom.js";
import * as format from "../format.js";

const BINS = 48;
const COLUMNS = {
  w: "weight",
  s: "score",
  last_loss: "last loss",
  loss_mean: "mean loss",
  loss_std: "variability of the loss",
  picked_share: "picked share",
  selected: "times picked",
  visits: "visits",
};
const LOGARITHMIC = new Set(["w", "s", "last_loss", "loss_mean", "loss_std"]);

export class DistributionPanel {
  constructor(run) {
    this.run = run;
    this.latest = new Latest();
    this.answer = null;
    const select = byId("column");
    show(select, Object.entries(COLUMNS).map(([name, title]) => h("option", { value: name }, title)));
    select.value = this.column;
    select.addEventListener("change", () => {
      address.set({ column: select.value === "w" ? null : select.value });
      this.refresh();
    });
    this.chart = h("div");
    this.table = new TableBelow("Quantiles as a table", ["Epoch", "Mean", "5 %", "25 %", "Median", "75 %", "95 %"]);
    show(byId("distribution"), this.chart, this.table.element);
    this.redraw = drawn(byId("distribution"), (width) => this.#draw(width));
  }

  get column() {
    const asked = address.get("column", "w");
    return asked in COLUMNS ? asked : "w";
  }

  async refresh() {
    const column = this.column;
    byId("column").value = column;
    const scale = LOGARITHMIC.has(column) ? "log" : "linear";
    try {
      this.answer = await this.latest.run((signal) => get(["runs", this.run, "distribution", "epochs"], { column, bins: BINS, scale }, { signal }));
    } catch (error) {
      if (isAborted(error)) return;
      throw error;
    }
    this.redraw();
  }

  #draw(width) {
    if (this.answer === null) return;
    const { column, edges, epochs, scale } = this.answer;
    const name = COLUMNS[column] ?? column;
    if (epochs.length === 0 || epochs.every((one) => one.counts.every((count) => count === 0))) {
      this.table.update([]);
      show(this.chart, empty("No values yet", `No sample has a value of ${name}.`));
      return;
    }
    const rows = epochs.map((one) => ({
      epoch: one.source === "live" ? "now" : one.epoch,
      edges,
      counts: one.counts,
      median: one.quantiles?.["0.5"],
      text: `${one.source === "live" ? "now" : `epoch ${one.epoch}`}: median ${format.value(one.quantiles?.["0.5"])}, mean ${format.value(one.mean)}`,
    }));
    const last = epochs.at(-1);
    const title = `Distribution of ${name} over ${epochs.length} epochs; the last has median ${format.value(last.quantiles?.["0.5"])} and mean ${format.value(last.mean)}`;
    const apart = [
      last.below > 0 && `${format.plural(last.below, "sample")} at 0 or below are not drawn`,
      last.num_missing > 0 && `${format.plural(last.num_missing, "sample")} without a value`,
    ].filter(Boolean);
    this.table.update(epochs.map(cells));
    show(
      this.chart,
      h("div", { class: "chart" }, ridges(width, rows, { title, log: scale === "log" })),
      h("p", { class: "small muted" }, `Heights are square roots of counts, the tick is the median${scale === "log" ? ", the axis is logarithmic" : ""}.`, apart.length > 0 && ` ${apart.join("; ")}.`),
    );
  }
}

function cells(one) {
  const quantiles = ["0.05", "0.25", "0.5", "0.75", "0.95"].map((quantile) => format.value(one.quantiles?.[quantile]));
  return [one.source === "live" ? "now" : String(one.epoch), format.value(one.mean), ...quantiles];
}
