// The samples that matter: most weighted, suspects, never picked, hardest, longest unseen.

import { address } from "../address.js";
import { get, isAborted, Latest } from "../api.js";
import { byId, empty, h, show } from "../dom.js";
import * as format from "../format.js";
import { kindOf, preview } from "./preview.js";

const PAGE = 24;
const COLUMNS = "id,label,w,last_loss,loss_mean,loss_std,visits,selected,picked_share,suspicion,age";

const VIEWS = {
  weighted: { title: "Most weighted", order: "-w", where: [], meaning: "The highest weights now: the samples that selection prefers." },
  suspects: {
    title: "Suspects",
    order: "-suspicion",
    where: [],
    meaning: "A loss that is high and stays high: often a wrong label, or a sample that cannot be learned.",
  },
  never: { title: "Never picked", order: "-loss_mean", where: ["selected=0"], meaning: "Observed but never trained on; the highest mean loss first." },
  hardest: { title: "Hardest", order: "-loss_mean", where: [], meaning: "The highest mean loss over all visits." },
  forgotten: { title: "Longest unseen", order: "-age", where: [], meaning: "The oldest last observation: the weight may be out of date." },
};

export class SamplesPanel {
  /**
   * @param filters which samples.
   * @param onPick called with the id of a sample to show.
   * @param onList called with the ids of the samples that are listed.
   */
  constructor(filters, onPick, onList) {
    this.filters = filters;
    this.onPick = onPick;
    this.onList = onList;
    this.latest = new Latest();
    this.run = null;
    this.samples = [];
    this.next = null;
    this.pages = 1;
    this.list = h("div", { class: "samples" });
    this.below = h("div", { class: "more" });
    show(byId("samples"), this.list, this.below);
    show(byId("views"), Object.entries(VIEWS).map(([name, view]) => h("button", { type: "button", "data-view": name, onclick: () => this.#choose(name) }, view.title)));
  }

  get view() {
    const asked = address.get("view", "weighted");
    return asked in VIEWS ? asked : "weighted";
  }

  #choose(name) {
    address.set({ view: name === "weighted" ? null : name }, { step: true });
    if (this.run !== null) this.refresh(this.run); // else it is taken from the address once the run is there
  }

  #query(cursor = null) {
    const view = VIEWS[this.view];
    const columns = COLUMNS.split(",").filter((name) => name !== "label" || this.run.labels !== null);
    return { order: view.order, where: [...view.where, ...this.filters.where], limit: PAGE, columns: columns.join(","), cursor };
  }

  /** Show the first page anew. */
  async refresh(run) {
    this.run = run;
    for (const button of byId("views").children) button.setAttribute("aria-pressed", String(button.dataset.view === this.view));
    byId("meaning").textContent = VIEWS[this.view].meaning;
    await this.#load(null);
  }

  /** The run has changed: show that, unless the reader is further down, where things must not move under them. */
  async follow(run) {
    if (this.pages > 1) {
      this.run = run;
      this.#foot(true);
    } else {
      await this.refresh(run);
    }
  }

  /** Add a page. It counts at once: else a live update would take the reader back while it is being loaded. */
  async #more() {
    this.pages += 1;
    try {
      await this.#load(this.next);
    } catch (error) {
      this.pages -= 1;
      throw error;
    }
  }

  async #load(cursor) {
    let answer;
    try {
      answer = await this.latest.run((signal) => get(["runs", this.run.run, "samples"], this.#query(cursor), { signal }));
    } catch (error) {
      if (isAborted(error)) return;
      throw error;
    }
    if (cursor === null) this.pages = 1;
    this.samples = cursor === null ? answer.samples : [...this.samples, ...answer.samples];
    this.next = answer.next;
    this.matching = answer.matching;
    this.#render();
  }

  #render() {
    const kind = kindOf(this.run);
    this.onList(this.#ids());
    this.list.dataset.kind = kind;
    if (this.samples.length === 0) {
      const filtered = this.filters.where.length > 0;
      show(this.list);
      show(this.below, empty(filtered ? "No sample matches" : "None", nothing(this.view, filtered)));
      return;
    }
    const before = new Map([...this.list.children].map((card) => [Number(card.dataset.id), card]));
    const focused = document.activeElement;
    show(
      this.list,
      this.samples.map((sample) => {
        const card = before.get(sample.id);
        if (card === undefined) return this.#card(sample);
        show(card.querySelector(".pairs"), facts(sample));
        return card;
      }),
    );
    if (this.list.contains(focused)) focused.focus({ preventScroll: true });
    this.#foot(false);
  }

  #foot(moved) {
    show(
      this.below,
      h("span", { class: "muted small" }, `${format.count(this.samples.length)} of ${format.plural(this.matching, "sample")}`),
      this.next !== null && h("button", { type: "button", onclick: () => this.#more() }, "Show more"),
      moved && h("button", { type: "button", onclick: () => this.refresh(this.run) }, "The run has new data: reload"),
    );
  }

  #ids() {
    return this.samples.map((one) => one.id);
  }

  #card(sample) {
    const name = sample.label ?? "sample";
    return h(
      "button",
      { type: "button", class: "sample", "data-id": sample.id, onclick: () => this.onPick(sample.id, this.#ids()) },
      preview(this.run, sample.id, `${name} ${sample.id}`),
      h("span", { class: "title" }, h("span", {}, sample.label ?? ""), h("span", { class: "id" }, `#${sample.id}`)),
      h("span", { class: "pairs" }, facts(sample)),
    );
  }
}

function facts(sample) {
  return [
    ["weight", format.value(sample.w)],
    ["loss", format.value(sample.last_loss)],
    ["mean loss", format.value(sample.loss_mean)],
    ["varies by", format.value(sample.loss_std)],
    ["picked", `${format.count(sample.selected)} of ${format.count(sample.visits)}`],
  ].flatMap(([name, text]) => [h("span", {}, name), h("span", {}, text)]);
}

function nothing(view, filtered) {
  if (filtered) return "Widen the filters, or clear them.";
  if (view === "never") return "Every sample was trained on at least once.";
  if (view === "suspects") return "A sample needs at least two visits.";
  return "Nothing has been observed yet.";
}
