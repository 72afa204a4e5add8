// How often each label's samples are picked; a click filters by it.

import { byId, empty, h, show } from "../dom.js";
import * as format from "../format.js";

const MOST = 30;

export class LabelsPanel {
  /** @param filters the filters, which a click sets. */
  constructor(filters) {
    this.filters = filters;
    this.coverage = null;
  }

  update(coverage) {
    this.coverage = coverage;
    this.render();
  }

  render() {
    const place = byId("labels");
    if (this.coverage === null) return;
    const labels = this.coverage.labels;
    if (labels === null || labels.length === 0) {
      show(place, empty("No labels", "The task of this run has no labels, or is unknown here."));
      return;
    }
    const chosen = this.filters.values.label ?? null;
    const focused = place.contains(document.activeElement) ? document.activeElement.dataset.label : null;
    const ordered = [...labels].sort((one, other) => (other.picked_share ?? -1) - (one.picked_share ?? -1));
    const rows = ordered.slice(0, MOST).map((one) => {
      const bar = h("i");
      bar.style.width = `${100 * (one.picked_share ?? 0)}%`;
      const pressed = chosen === one.label;
      return h(
        "li",
        {},
        h(
          "button",
          {
            type: "button",
            "aria-pressed": String(pressed),
            "data-label": one.label,
            title: `${one.label}: ${format.plural(one.num_samples, "sample")}, picked after ${format.count(one.selected)} of ${format.plural(one.visits, "visit")}, mean weight ${format.value(one.mean_weight)}, ${format.count(one.never_picked)} never picked`,
            onclick: () => this.filters.set({ label: pressed ? null : one.label }),
          },
          h("span", { class: "name" }, one.label),
          h("span", { class: "track", "aria-hidden": "true" }, bar),
          h("span", { class: "value" }, format.percent(one.picked_share)),
        ),
      );
    });
    const rest = ordered.length > MOST ? h("p", { class: "small muted" }, `and ${format.plural(ordered.length - MOST, "label")} picked less often`) : null;
    show(place, h("ul", { class: "labels" }, rows), rest);
    if (focused !== null) place.querySelector(`[data-label="${CSS.escape(focused)}"]`)?.focus();
  }
}
