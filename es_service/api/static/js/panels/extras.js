// The foot of a run's page: the table as a file, and the settings of the run.

import { route } from "../api.js";
import { byId, h, show } from "../dom.js";

const FORMATS = { parquet: "Parquet", arrow: "Arrow", csv: "CSV" };

/** Show them, or what has changed of them: a link that has the focus keeps it. */
export function showExtras(run) {
  const links = byId("export");
  if (links.childElementCount === 0) {
    show(links, Object.entries(FORMATS).map(([format, title]) => h("a", { class: "button", href: route(["runs", run.run, "export"], { format }), download: true }, title)));
    byId("settings").append(h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Settings" }, h("table", {}, h("tbody"))));
  }
  const rows = flat({ ...run.config, training: run.training, server: run.server });
  show(byId("settings").querySelector("tbody"), rows.map(([name, value]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, h("code", {}, String(value))))));
}

function flat(values, prefix = "") {
  return Object.entries(values).flatMap(([name, value]) => {
    if (value === null || value === undefined) return [];
    if (typeof value === "object" && !Array.isArray(value)) return flat(value, `${prefix}${name}.`);
    return [[`${prefix}${name}`, Array.isArray(value) ? value.join(", ") : value]];
  });
}
