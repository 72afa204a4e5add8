// The page of runs: search, sort, and follow.

import { address, runPage } from "./address.js";
import { get, isAborted, Latest, ServerAway } from "./api.js";
import { byId, debounced, empty, h, notice, show } from "./dom.js";
import * as format from "./format.js";
import { greet } from "./session.js";

const EVERY_MS = 5000;
const SOON_MS = 500; // while runs are still being read
const PAGE = 100;
const MOST = 1000;
const COLUMNS = [
  { key: "run", title: "Run" },
  { key: "status", title: "Status" },
  { key: "method", title: "Method" },
  { key: "task", title: "Task" },
  { key: "num_samples", title: "Samples", number: true },
  { key: "accuracy", title: "Accuracy", number: true },
  { key: "saving.samples", title: "Backward passes saved", number: true, fixed: true },
  { key: "saving.seconds", title: "Time saved", number: true, fixed: true },
  { key: "updated_at", title: "Last seen", number: true },
];
const STATUSES = ["all", "live", "finished", "stale"];
const latest = new Latest();
const search = byId("search");
let shown = PAGE;
let answered = null;

const order = () => address.get("order", "-updated_at");

function showStatuses() {
  const chosen = address.get("status", "all");
  for (const button of byId("statuses").children) button.setAttribute("aria-pressed", String(button.textContent === chosen));
}

function choose(status) {
  address.set({ status: status === "all" ? null : status }, { step: true });
  showStatuses();
  refresh();
}

function sortBy(key) {
  const now = order();
  const descends = COLUMNS.find((column) => column.key === key).number;
  const first = descends ? `-${key}` : key;
  const second = descends ? key : `-${key}`;
  address.set({ order: now === first ? second : first }, { step: true });
  refresh();
}

function header(column) {
  const by = order();
  const sorted = by === column.key ? "ascending" : by === `-${column.key}` ? "descending" : null;
  const inside = column.fixed ? column.title : h("button", { type: "button", onclick: () => sortBy(column.key) }, column.title);
  return h("th", { scope: "col", class: column.number && "number", "aria-sort": sorted }, inside);
}

/** How far a run is, as a bar; its width is set through the object model, which the content policy allows. */
function meter(share) {
  const bar = h("i");
  bar.style.width = `${100 * share}%`;
  return h("span", { class: "meter", "aria-hidden": "true" }, bar);
}

function status(run) {
  const epochs = run.epochs ? `epoch ${format.count(run.epoch)} of ${format.count(run.epochs)}` : "";
  return [
    h("span", { class: "badge", "data-state": run.status }, run.status),
    run.status !== "finished" && epochs && h("span", { class: "small muted" }, ` ${epochs}`),
    run.status === "live" && run.done !== null && meter(run.done),
    run.status === "unreadable" && h("div", { class: "small muted" }, run.detail),
  ];
}

function row(run) {
  const cell = (title, text) => h("td", { class: "number", "data-label": title }, text);
  const saved = run.saving ?? {};
  return h(
    "tr",
    {},
    h("td", { class: "name" }, h("a", { href: runPage(run.run) }, run.run)),
    h("td", { class: "state" }, status(run)),
    h("td", { "data-label": "Method" }, run.method ?? "–"),
    h("td", { "data-label": "Task" }, run.task ?? "–"),
    cell("Samples", format.count(run.num_samples)),
    cell("Accuracy", run.accuracy === null ? "–" : run.accuracy.toFixed(4)),
    cell("Backward passes saved", format.percent(saved.samples)),
    cell("Time saved", format.percent(saved.seconds)),
    h("td", { class: "number", "data-label": "Last seen" }, h("time", { datetime: run.updated_at, title: run.updated_at }, format.ago(run.age_s))),
  );
}

/** Runs that are nobody's trials, and then those of each search under its name, all in the order that was asked for. */
function groups(runs) {
  const searches = [...new Set(runs.map((run) => run.search))].sort((one, other) => (one ?? "").localeCompare(other ?? ""));
  return searches.map((name) => {
    const members = runs.filter((run) => run.search === name);
    if (name === null) return h("tbody", {}, members.map(row));
    const best = Math.max(...members.map((run) => run.accuracy ?? -Infinity));
    const note = best === -Infinity ? "" : `, best accuracy ${best.toFixed(4)}`;
    const title = h("th", { scope: "rowgroup", colspan: COLUMNS.length, class: "group" }, `Search ${name}`);
    title.append(h("span", { class: "small muted" }, ` ${format.plural(members.length, "trial")}${note}`));
    return h("tbody", {}, h("tr", {}, title), members.map(row));
  });
}

function nothing(answer) {
  if (address.get("q") || address.get("status")) {
    return empty("No run matches", "Change or clear the search.");
  }
  return empty(
    "No runs yet",
    `There is no run in ${answer.storage}. Train one, and it will appear here:`,
    `es-service train --task fashion --method es --run first --storage ${answer.storage}`,
  );
}

function render(answer) {
  const focused = document.activeElement?.closest?.("#list")
    ? { href: document.activeElement.getAttribute("href"), text: document.activeElement.textContent }
    : null;
  const matching = format.plural(answer.total, "run");
  const count = answer.total > answer.runs.length ? `${format.count(answer.runs.length)} of ${matching}` : matching;
  byId("count").textContent = answer.pending ? `${count}, ${format.count(answer.pending)} not read yet` : count;
  if (answer.runs.length === 0) {
    show(byId("list"), answer.pending ? empty("Reading the runs", "There are many, and this view needs all of them.") : nothing(answer));
    return;
  }
  const table = h(
    "table",
    { class: "runs" },
    h("caption", { class: "unseen" }, "Runs in ", answer.storage),
    h("thead", {}, h("tr", {}, COLUMNS.map(header))),
    groups(answer.runs),
  );
  const more =
    answer.total > answer.runs.length && shown < MOST && h("div", { class: "more" }, h("button", { type: "button", onclick: grow }, "Show more"));
  show(byId("list"), h("div", { class: "scroll" }, table), more || null);
  if (focused) {
    const again = [...byId("list").querySelectorAll("a, button")].find(
      (one) => one.getAttribute("href") === focused.href && one.textContent === focused.text,
    );
    again?.focus();
  }
}

function grow() {
  shown = Math.min(MOST, shown + 2 * PAGE);
  refresh();
}

async function refresh() {
  try {
    const query = { q: address.get("q"), status: address.get("status"), order: order(), limit: shown };
    const answer = await latest.run((signal) => get(["runs"], query, { signal }));
    answered = Date.now();
    render(answer);
    if (answer.pending) setTimeout(refresh, SOON_MS);
    if (answer.ray?.state === "away") {
      notice(byId("notice"), "old", `The Ray cluster cannot be reached, so live runs are shown as of their last epoch. ${answer.ray.detail ?? ""}`);
    } else {
      notice(byId("notice"), null);
    }
  } catch (error) {
    if (isAborted(error)) return;
    if (error instanceof ServerAway) {
      const when = answered === null ? "" : ` What you see is from ${new Date(answered).toLocaleTimeString()}.`;
      notice(byId("notice"), "away", `The server does not answer.${when} This page keeps trying.`);
    } else {
      notice(byId("notice"), "away", [error.message, error.hint].filter(Boolean).join(": "));
    }
  }
}

search.value = address.get("q", "");
show(byId("statuses"), STATUSES.map((status) => h("button", { type: "button", onclick: () => choose(status) }, status)));
showStatuses();
search.addEventListener(
  "input",
  debounced(() => {
    address.set({ q: search.value.trim() });
    refresh();
  }, 200),
);
address.watch(() => {
  search.value = address.get("q", "");
  showStatuses();
  refresh();
});
document.addEventListener("visibilitychange", () => !document.hidden && refresh());
setInterval(() => !document.hidden && refresh(), EVERY_MS);
greet();
refresh();
