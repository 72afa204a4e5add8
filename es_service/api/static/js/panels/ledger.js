// The ledger: where the seconds of the run went, epoch by epoch what they were, and the accuracy.

import { stackedBars } from "../charts/bars.js";
import { lineChart } from "../charts/line.js";
import { byId, drawn, empty, h, s, show, TableBelow } from "../dom.js";
import * as format from "../format.js";

const PARTS = { train: "training", score: "scoring", exchange: "exchange", data: "data", rest: "rest" };

export class LedgerPanel {
  constructor() {
    this.ledger = null;
    this.chart = h("div");
    this.table = new TableBelow("Epochs as a table", ["Epoch", "Seconds", "Trained", "Scored", "Accuracy", "Time saved so far"]);
    show(byId("ledger"), this.chart, this.table.element);
    this.redraw = [drawn(byId("ledger"), (width) => this.#drawLedger(width)), drawn(byId("accuracy"), (width) => this.#drawAccuracy(width))];
  }

  /** @param numSamples that an epoch has, if it is trained in full. */
  update(ledger, numSamples) {
    const text = JSON.stringify(ledger);
    if (text === this.text) return;
    this.text = text;
    this.ledger = ledger;
    this.numSamples = numSamples;
    for (const redraw of this.redraw) redraw();
  }

  #drawLedger(width) {
    if (this.ledger === null) return;
    const epochs = byEpoch(this.ledger, this.numSamples);
    this.table.update(epochs.map(cells));
    if (!this.ledger.seconds) {
      show(this.chart, empty("No ledger yet", "The ledger appears after the first epoch. The run of a loop of your own has one if it is kept: es.connect, or es.Selector with run=."));
      return;
    }
    const drawnEpochs = epochs.map((one) => ({
      epoch: one.epoch,
      parts: one.selects ? { train: one.seconds } : { rest: one.seconds },
      full: one.full,
      text: `epoch ${one.epoch}: ${format.seconds(one.seconds)}, trained on ${format.count(one.trained)} samples`,
    }));
    show(
      this.chart,
      sections(this.ledger, width),
      epochs.length > 0 && h("div", { class: "chart" }, stackedBars(width, drawnEpochs, ["rest", "train"], `Seconds of each of ${epochs.length} epochs`)),
      epochs.length > 0 && epochLegend(epochs),
      decisions(this.ledger),
    );
  }

  #drawAccuracy(width) {
    const place = byId("accuracy");
    if (this.ledger === null) return;
    const points = this.ledger.history
      .filter((one) => one.accuracy !== null)
      .map((one) => ({ x: one.epoch + 1, y: one.accuracy, picked: true, text: `epoch ${one.epoch + 1}: ${one.accuracy.toFixed(4)}` }));
    if (points.length === 0) {
      show(place, measured(this.ledger), empty("No accuracy yet", "It is measured at the end of each epoch. A loop of your own reports it with selector.log(accuracy=…)."));
      return;
    }
    const last = points.at(-1);
    const title = `Accuracy over ${points.length} epochs: from ${points[0].y.toFixed(4)} to ${last.y.toFixed(4)}`;
    show(place, h("div", { class: "chart" }, lineChart(width, points, { title, tick: (value) => value.toFixed(2), height: 360 })), measured(this.ledger));
  }
}

/** What else was measured in the last epoch that has something, as a list; null for nothing. */
function measured({ history }) {
  const of = (one) => Object.entries({ "held-out loss": one.held_out_loss, "train loss": one.train_loss, ...one.metrics }).filter(([, value]) => value !== null);
  const last = history.findLast((one) => of(one).length > 0);
  if (last === undefined) return null;
  return h("ul", { class: "legend measured" }, h("li", {}, `epoch ${last.epoch + 1}:`), of(last).map(([name, value]) => h("li", {}, `${name} ${Number(value.toPrecision(4))}`)));
}

/** What the run decided, each epoch that changed it, as a list; null where it decides nothing. */
function decisions({ history }) {
  const said = ({ ratio, reason }) => `${ratio < 1 ? `${format.percent(ratio, 0)} of each meta-batch` : "everything"} (${reason.replaceAll("_", " ")})`;
  const made = history.filter((one) => one.decision).map((one) => ({ epoch: one.epoch + 1, text: said(one.decision) }));
  const changes = made.filter((one, i) => i === 0 || one.text !== made[i - 1].text);
  if (changes.length === 0) return null;
  return h("ul", { class: "legend measured" }, h("li", {}, "Decisions:"), changes.map((one) => h("li", {}, `from epoch ${one.epoch} on ${one.text}`)));
}

/** What each epoch alone took: the history counts from the run's beginning. In full, all would take the same. */
function byEpoch({ history, samples, seconds, saving }, numSamples) {
  const soFar = fullSeconds(seconds?.total, saving); // the epoch under way is in it, too
  const full = soFar === null || !samples?.full ? null : soFar * (numSamples / samples.full);
  let before = { trained: 0, scored: 0, seconds: 0 };
  return history.map((one) => {
    const found = {
      epoch: one.epoch + 1,
      trained: one.trained - before.trained,
      scored: one.scored - before.scored,
      seconds: one.seconds - before.seconds,
      full,
      accuracy: one.accuracy,
      saving: one.saving,
    };
    found.selects = found.scored > 0;
    before = one;
    return found;
  });
}

/** What full training would have taken by now, by the run's own full steps; null where it has none. */
function fullSeconds(total, saving) {
  const share = saving?.seconds;
  return typeof share !== "number" || typeof total !== "number" || share >= 1 ? null : total / (1 - share);
}

/** One bar for the whole run: its seconds by section. */
function sections(ledger, width) {
  const known = Object.keys(PARTS).filter((name) => name !== "rest" && typeof ledger.seconds[name] === "number");
  if (known.length === 0) return h("p", { class: "muted small" }, `${format.seconds(ledger.seconds.total)} in steps so far; the breakdown is reported when the run ends.`);
  const total = ledger.seconds.total;
  const parts = known.map((name) => [name, ledger.seconds[name]]);
  parts.push(["rest", Math.max(0, total - parts.reduce((sum, [, size]) => sum + size, 0))]);
  const full = fullSeconds(total, ledger.saving);
  const scale = width / Math.max(total, full ?? 0);
  let left = 0;
  const bars = parts.map(([name, size]) => {
    const bar = s("rect", { class: name, x: left * scale, y: 4, width: Math.max(0, size * scale), height: 18 }, s("title", {}, `${PARTS[name]}: ${format.seconds(size)}`));
    left += size;
    return bar;
  });
  const title = `${format.seconds(total)} in steps: ${parts.map(([name, size]) => `${PARTS[name]} ${format.seconds(size)}`).join(", ")}`;
  return [
    h("ul", { class: "legend" }, parts.map(([name, size]) => h("li", {}, swatch(name), `${PARTS[name]} ${format.seconds(size)}`)),
      full !== null && h("li", {}, `full training would take ${format.seconds(full)}`)),
    h("div", { class: "chart" }, s("svg", { viewBox: `0 0 ${width} 34`, height: 34, role: "img", "aria-label": title }, bars,
      full !== null && s("line", { class: "full", x1: Math.min(width - 1, full * scale - 1), x2: Math.min(width - 1, full * scale - 1), y1: 0, y2: 26 }))),
  ];
}

function swatch(name) {
  return s("svg", { viewBox: "0 0 12 12", "aria-hidden": "true" }, s("rect", { class: name, width: 12, height: 12 }));
}

function epochLegend(epochs) {
  const dashed = s("svg", { viewBox: "0 0 12 12", "aria-hidden": "true" }, s("line", { class: "full", x1: 0, x2: 12, y1: 6, y2: 6 }));
  return h(
    "ul",
    { class: "legend" },
    epochs.some((one) => one.selects) && h("li", {}, swatch("train"), "epochs that select"),
    epochs.some((one) => !one.selects) && h("li", {}, swatch("rest"), "epochs that train on everything"),
    epochs.some((one) => one.full !== null) && h("li", {}, dashed, "in full"),
  );
}

function cells(one) {
  const accuracy = one.accuracy === null ? "–" : one.accuracy.toFixed(4);
  return [String(one.epoch), one.seconds.toFixed(1), format.count(one.trained), format.count(one.scored), accuracy, format.percent(one.saving?.seconds)];
}
