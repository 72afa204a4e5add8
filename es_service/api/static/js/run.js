// The page of a run: asks for what its panels show, follows the run, and says when it cannot.

import { address, root, runOfPage } from "./address.js";
import { ApiError, get, isAborted, ServerAway } from "./api.js";
import { byId, empty, h, show } from "./dom.js";
import { follow } from "./live.js";
import { ComparePanel } from "./panels/compare.js";
import { DistributionPanel } from "./panels/distribution.js";
import { showExtras } from "./panels/extras.js";
import { Filters } from "./panels/filters.js";
import { showFigures, showFreshness, showHead, verdict } from "./panels/head.js";
import { LabelsPanel } from "./panels/labels.js";
import { LedgerPanel } from "./panels/ledger.js";
import { MapPanel } from "./panels/map.js";
import { SampleDialog } from "./panels/sample.js";
import { SamplesPanel } from "./panels/samples.js";
import { greet } from "./session.js";

const name = runOfPage();
let run = null;
let receivedMs = null;
let away = null;
let refused = null;
let busy = false;
let waiting = false;

const filters = new Filters(() => run && guarded(() => Promise.all([map.refresh(run), samples.refresh(run), labels.render()])));
const dialog = new SampleDialog();
const pick = (id, neighbours) => dialog.open(run, id, neighbours);
const map = new MapPanel(filters, pick);
const samples = new SamplesPanel(filters, pick, (ids) => dialog.offer(ids));
const labels = new LabelsPanel(filters);
const compare = new ComparePanel(pick);
const ledger = new LedgerPanel();
const distribution = new DistributionPanel(name);

function fresh() {
  showFreshness(run, receivedMs, away, refused);
}

/** Run a refresh; what the server did not answer becomes the notice at the top. */
async function guarded(call) {
  try {
    await call();
    refused = null;
  } catch (error) {
    if (isAborted(error)) return;
    if (error instanceof ServerAway) away ??= { sinceMs: Date.now(), detail: error.detail };
    else if (error instanceof ApiError) refused = [error.message, error.hint].filter(Boolean).join(": ");
    else throw error;
  } finally {
    fresh();
  }
}

async function refresh() {
  if (busy) {
    waiting = true;
    return;
  }
  busy = true;
  await guarded(showAll).finally(() => (busy = false));
  if (waiting) {
    waiting = false;
    refresh();
  }
}

async function showAll() {
  showHead(run);
  showExtras(run);
  const told = await get(["runs", name, "ledger"]);
  ledger.update(told, run.num_samples);
  byId("verdict").textContent = verdict(run, told);
  byId("panels").hidden = run.table === null;
  if (run.table === null) {
    showFigures(run, told, null, null);
    return;
  }
  filters.render(run.labels);
  await Promise.all([showOverview(run, told), samples.follow(run), map.refresh(run), distribution.refresh(), compare.refresh(run)]);
}

/** What is known of the table as a whole; a panel of a large table waits for nothing but its own answer. */
async function showOverview(run, told) {
  const [coverage, effective] = await Promise.all([get(["runs", name, "coverage"]), get(["runs", name, "effective_sample_size"])]);
  showFigures(run, told, coverage, effective);
  labels.update(coverage);
}

function received(found) {
  const first = run === null;
  run = found;
  receivedMs = Date.now();
  refresh();
  if (first && found.table !== null) dialog.follow(found);
}

function gone(error) {
  const missing = error.status === 404;
  const text = missing ? [`Run '${name}' not found. `, h("a", { href: root }, "See all runs"), "."] : [error.message, error.hint].filter(Boolean).join(": ");
  show(byId("main"), byId("name").parentElement, empty(missing ? "No such run" : "This run cannot be shown", text));
}

// What a click asked for and did not get ends here too.
addEventListener("unhandledrejection", (event) => {
  if (!isAborted(event.reason) && !(event.reason instanceof ServerAway) && !(event.reason instanceof ApiError)) return;
  event.preventDefault();
  guarded(() => Promise.reject(event.reason));
});

async function begin() {
  byId("name").textContent = name;
  greet();
  try {
    received(await get(["runs", name]));
  } catch (error) {
    if (error instanceof ApiError) {
      gone(error);
      return;
    }
    away = { sinceMs: Date.now(), detail: null };
  }
  follow(name, run, {
    onRun: received,
    onLink: (kind, sinceMs, detail) => {
      away = kind === "away" ? { sinceMs, detail } : null;
      fresh();
    },
  });
  fresh();
  setInterval(fresh, 5000);
  address.watch(() => {
    if (run === null || run.table === null) return;
    filters.render(run.labels);
    guarded(() => Promise.all([distribution.refresh(), map.refresh(run), samples.refresh(run), labels.render(), compare.refresh(run), dialog.follow(run)]));
  });
}

begin();
