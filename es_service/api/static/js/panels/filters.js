// Which samples the map and the list are about. Kept in the address: label=Shirt&w=0.5..2&visits=..3

import { address } from "../address.js";
import { byId, debounced, h, show } from "../dom.js";

const RANGES = {
  w: "Weight",
  loss_mean: "Mean loss",
  loss_std: "Variability",
  visits: "Visits",
  selected: "Times picked",
};

export class Filters {
  /** @param onChange called when they have changed. */
  constructor(onChange) {
    this.onChange = onChange;
    this.labels = undefined;
    byId("reset").addEventListener("click", () => this.set(Object.fromEntries(["label", ...Object.keys(RANGES)].map((name) => [name, null]))));
    byId("filters").addEventListener("submit", (event) => event.preventDefault());
  }

  /** What is set: {label, w: "0.5..2", …} */
  get values() {
    const all = address.all();
    const known = Object.keys(RANGES).filter((name) => bounds(all[name]) !== null);
    const found = Object.fromEntries(known.map((name) => [name, all[name]]));
    if (all.label) found.label = all.label;
    return found;
  }

  /** As the API wants them: a list of conditions. */
  get where() {
    const conditions = [];
    const { label, ...ranges } = this.values;
    if (label) conditions.push(`label=${label}`);
    for (const [name, text] of Object.entries(ranges)) {
      const [low, high] = bounds(text);
      if (low !== "" && low === high) conditions.push(`${name}=${low}`);
      else {
        if (low !== "") conditions.push(`${name}>=${low}`);
        if (high !== "") conditions.push(`${name}<=${high}`);
      }
    }
    return conditions;
  }

  set(changes, { step = true } = {}) {
    address.set(changes, { step });
    this.render(this.labels);
    this.onChange();
  }

  /** Show the form; `labels` are the names to choose from, or null. What is being typed in is left alone. */
  render(labels) {
    const form = byId("filters");
    if (labels !== this.labels || form.childElementCount === 0) {
      this.labels = labels;
      show(form, labels && this.#labelField(labels), Object.entries(RANGES).map(([name, title]) => this.#rangeField(name, title)));
    }
    const values = this.values;
    for (const input of form.querySelectorAll("input, select")) {
      if (input === document.activeElement) continue;
      const [name, end] = input.name.split(".");
      input.value = name === "label" ? (values.label ?? "") : (bounds(values[name])?.[end === "low" ? 0 : 1] ?? "");
    }
    byId("reset").disabled = Object.keys(values).length === 0;
  }

  #labelField(labels) {
    const select = h("select", { id: "filter-label", name: "label" }, h("option", { value: "" }, "all"), labels.map((label) => h("option", { value: label }, label)));
    select.addEventListener("change", () => this.set({ label: select.value || null }));
    return h("div", { class: "field" }, h("label", { for: "filter-label" }, "Label"), select);
  }

  #rangeField(name, title) {
    const changed = debounced(() => {
      const [low, high] = [lowest, highest].map((input) => (input.validity.valid ? input.value.trim() : ""));
      this.set({ [name]: low === "" && high === "" ? null : `${low}..${high}` }, { step: false });
    }, 350);
    const end = (which, said) =>
      h("input", { type: "number", step: "any", min: 0, inputmode: "decimal", name: `${name}.${which}`, "aria-label": `${title}, ${said}`, placeholder: which === "low" ? "min" : "max", oninput: changed });
    const [lowest, highest] = [end("low", "at least"), end("high", "at most")];
    return h("div", { class: "field", role: "group", "aria-label": title }, h("span", { class: "label" }, title), h("div", { class: "range" }, lowest, h("span", { "aria-hidden": "true" }, "–"), highest));
  }
}

/** The two ends of "0.5..2", each "" where open; null where it is none. */
function bounds(text) {
  const parts = (text ?? "").split("..");
  if (parts.length !== 2 || parts.every((part) => part === "")) return null;
  if (parts.some((part) => part !== "" && !Number.isFinite(Number(part)))) return null;
  return parts;
}
