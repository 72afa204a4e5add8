// Beside another run over the same samples: do both weigh the same samples highly, and which differ most?

import { address } from "../address.js";
import { ApiError, get, isAborted, Latest } from "../api.js";
import { byId, empty, h, show } from "../dom.js";
import * as format from "../format.js";
import { kindOf, preview } from "./preview.js";

const SHOWN = 12;
const CANDIDATES = 500;

export class ComparePanel {
  /** @param onPick called with the id of a sample to show. */
  constructor(onPick) {
    this.onPick = onPick;
    this.latest = new Latest();
    this.others = null;
    this.run = null;
    byId("other").addEventListener("change", () => {
      address.set({ compare: byId("other").value || null });
      if (this.run !== null) this.refresh(this.run);
    });
  }

  /** Show the comparison that the address asks for; where no run can be compared with, the panel stays away. */
  async refresh(run) {
    this.run = run;
    this.others ??= await candidates(run);
    byId("compare-panel").hidden = this.others.length === 0;
    const select = byId("other");
    if (select.childElementCount !== this.others.length + 1) {
      show(select, h("option", { value: "" }, "choose a run"), this.others.map((name) => h("option", { value: name }, name)));
    }
    const other = address.get("compare", "");
    select.value = this.others.includes(other) ? other : "";
    if (select.value === "") {
      this.text = null;
      show(byId("compare"));
      return;
    }
    try {
      const answer = await this.latest.run((signal) => get(["compare"], { a: run.run, b: other, column: "w", limit: SHOWN }, { signal }));
      this.#render(answer);
    } catch (error) {
      if (isAborted(error)) return;
      if (!(error instanceof ApiError)) throw error;
      this.text = null;
      show(byId("compare"), empty("These two cannot be compared", [error.message, error.hint].filter(Boolean).join(": ")));
    }
  }

  #render(answer) {
    const text = JSON.stringify([answer.moved, answer.rank_correlation, answer.overlap]);
    if (text === this.text) return;
    this.text = text;
    const [mine, theirs] = [answer.a.run, answer.b.run];
    const correlation = answer.rank_correlation;
    const figures = [
      ["Rank correlation", correlation === null ? "–" : correlation.toFixed(3), "of the weights; 1 is the same order"],
      ["Heaviest 1 % shared", format.percent(answer.overlap["0.01"]), `of ${mine} with ${theirs}`],
      ["Heaviest 10 % shared", format.percent(answer.overlap["0.1"]), `of ${mine} with ${theirs}`],
      ["Samples in both", format.count(answer.num_common), ""],
    ];
    show(
      byId("compare"),
      h("dl", { class: "figures" }, figures.map(([name, text, note]) => h("div", {}, h("dt", {}, name), h("dd", {}, text), h("dd", { class: "note" }, note)))),
      h("h3", { class: "below" }, "Largest differences"),
      h("div", { class: "samples", "data-kind": kindOf(this.run) }, answer.moved.map((one) => this.#card(one, mine, theirs, answer.moved))),
    );
  }

  #card(one, mine, theirs, all) {
    const facts = [
      [mine, format.value(one.a)],
      ["above", `${format.percent(one.a_rank, 0)} of all`],
      [theirs, format.value(one.b)],
      ["above", `${format.percent(one.b_rank, 0)} of all`],
    ];
    return h(
      "button",
      { type: "button", class: "sample", "data-id": one.id, onclick: () => this.onPick(one.id, all.map((other) => other.id)) },
      preview(this.run, one.id, `${one.label ?? "sample"} ${one.id}`),
      h("span", { class: "title" }, h("span", {}, one.label ?? ""), h("span", { class: "id" }, `#${one.id}`)),
      h("span", { class: "pairs" }, facts.flatMap(([name, text]) => [h("span", {}, name), h("span", {}, text)])),
    );
  }
}

/** The names of other runs that are trained on as many samples of the same task. */
async function candidates(run) {
  const { runs } = await get(["runs"], { limit: CANDIDATES, order: "run" });
  const fits = (other) => other.run !== run.run && other.num_samples === run.num_samples && other.task === run.task && other.epoch > 0;
  return runs.filter(fits).map((other) => other.run);
}
