// The page of a run: asks for what its panels show, follows the run, and says when it cannot.

import { address, runOfPage } from "./address.js";
import { ApiError, get, isAborted, ServerAway } from "./api.js";
import { byId, empty, show } from "./dom.js";
import { follow } from "./live.js";
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
let busy = false;
let waiting = false;

const filters = new Filters(() => run && guarded(() => Promise.all([map.refresh(run), samples.refresh(run), labels.render()])));
const dialog = new SampleDialog();
const pick = (id, neighbours) => dialog.open(run, id, neighbours);
const map = new MapPanel(filters, pick);
const samples = new SamplesPanel(filters, pick);
const labels = new LabelsPanel(filters);
const ledger = new LedgerPanel();
const distribution = new DistributionPanel(name);

/** Run a refresh; what the server did not answer becomes the notice at the top. */
async function guarded(call) {
  try {
    await call();
  } catch (error) {
    if (isAborted(error)) return;
    if (error instanceof ServerAway) away ??= { sinceMs: Date.now(), detail: null };
    else if (error instanceof ApiError) away = { sinceMs: Date.now(), detail: [error.message, error.hint].filter(Boolean).join(": ") };
    else throw error;
    showFreshness(run, receivedMs, away);
  }
}

async function refresh() {
  if (busy) {
    waiting = true;
    return;
  }
  busy = true;
  await guarded(async () => {
    showHead(run);
    showExtras(run);
    const told = await get(["runs", name, "ledger"]);
    ledger.update(told);
    byId("verdict").textContent = verdict(run, told);
    byId("panels").hidden = run.table === null;
    if (run.table === null) {
      showFigures(run, told, null, null);
      return;
    }
    const [coverage, effective] = await Promise.all([get(["runs", name, "coverage"]), get(["runs", name, "effective_sample_size"])]);
    showFigures(run, told, coverage, effective);
    filters.render(run.labels);
    labels.update(coverage);
    await Promise.all([distribution.refresh(), map.refresh(run), samples.follow(run)]);
  });
  busy = false;
  if (waiting) {
    waiting = false;
    refresh();
  }
}

function received(found) {
  const first = run === null;
  run = found;
  receivedMs = Date.now();
  refresh();
  if (first && found.table !== null) dialog.follow(found);
}

function gone(error) {
  show(
    byId("main"),
    byId("name").parentElement,
    empty(error.status === 404 ? "No such run" : "This run cannot be shown", [error.message, error.hint].filter(Boolean).join(": ")),
  );
}

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
  follow(name, {
    onRun: received,
    onLink: (kind, sinceMs, detail) => {
      away = kind === "away" ? { sinceMs, detail } : null;
      showFreshness(run, receivedMs, away);
    },
  });
  showFreshness(run, receivedMs, away);
  setInterval(() => showFreshness(run, receivedMs, away), 5000);
  address.watch(() => {
    if (run === null || run.table === null) return;
    filters.render(run.labels);
    guarded(() => Promise.all([distribution.refresh(), map.refresh(run), samples.refresh(run), labels.render(), dialog.follow(run)]));
  });
}

begin();
