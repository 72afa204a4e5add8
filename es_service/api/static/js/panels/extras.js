// The foot of a run's page: the table as a file, and the settings of the run.

import { route } from "../api.js";
import { byId, h, show } from "../dom.js";

export function showExtras(run) {
  const formats = { parquet: "Parquet", arrow: "Arrow", csv: "CSV" };
  show(byId("export"), Object.entries(formats).map(([format, title]) => h("a", { class: "button", href: route(["runs", run.run, "export"], { format }), download: true }, title)));
  const rows = flat({ ...run.config, training: run.training, server: run.server });
  const table = h("table", {}, h("tbody", {}, rows.map(([name, value]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, h("code", {}, String(value)))))));
  const place = byId("settings");
  show(place, place.querySelector("summary"), h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Settings" }, table));
}

function flat(values, prefix = "") {
  return Object.entries(values).flatMap(([name, value]) => {
    if (value === null || value === undefined) return [];
    if (typeof value === "object" && !Array.isArray(value)) return flat(value, `${prefix}${name}.`);
    return [[`${prefix}${name}`, Array.isArray(value) ? value.join(", ") : value]];
  });
}
