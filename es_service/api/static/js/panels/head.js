// The top of a run's page: what it is, how far, whether the data are old, whether selection pays, the key figures.

import { byId, h, notice, show } from "../dom.js";
import * as format from "../format.js";

const OLD_S = 15; // a live table is refreshed about every 2 s

/** Say what the run is and where it stands. */
export function showHead(run) {
  document.title = `${run.run} · es_service`;
  byId("name").textContent = run.run;
  const badge = byId("state");
  badge.hidden = false;
  badge.dataset.state = run.status;
  badge.textContent = run.status === "finished" ? "finished" : `${run.status}, ${epochs(run)}`;
  const { workers, exchange, task, method, training } = run;
  const facts = [
    method && `method ${method}`,
    task && `task ${task}`,
    run.num_samples !== null && format.plural(run.num_samples, "sample"),
    format.plural(run.epochs, "epoch"),
    exchange && `exchange ${exchange}`,
    workers && format.plural(workers, "worker"),
    training?.seed !== undefined && `seed ${training.seed}`,
    run.begun_at && h("span", {}, "started ", h("time", { datetime: run.begun_at }, new Date(run.begun_at).toLocaleString())),
  ];
  show(byId("facts"), facts.filter(Boolean).map((fact) => h("span", {}, fact)));
}

function epochs(run) {
  return `epoch ${format.count(run.epoch)} of ${format.count(run.epochs)}`;
}

/**
 * Say plainly where the data are from if they are not fresh.
 *
 * @param run what the server said last, or null.
 * @param receivedMs when it did.
 * @param away null, or {sinceMs, detail}
 * @param refused null, or what the server had to say against a request.
 */
export function showFreshness(run, receivedMs, away, refused) {
  const place = byId("notice");
  if (away !== null) {
    const since = new Date(away.sinceMs).toLocaleTimeString();
    const what = away.detail ? `Since ${since} the server has not been able to answer: ${away.detail.replace(/\.$/, "")}.` : `The server does not answer (since ${since}).`;
    const data = receivedMs === null ? "" : ` What you see is from ${new Date(receivedMs).toLocaleTimeString()}.`;
    notice(place, "away", `${what}${data} This page keeps trying.`);
    return;
  }
  if (refused !== null) {
    notice(place, "away", `The server rejected some of this page's requests: ${refused}`);
    return;
  }
  if (run === null) return;
  const tableAge = run.table === null ? null : run.table.age_s + (Date.now() - receivedMs) / 1000;
  if (run.status === "stale") {
    const source = run.table === null ? "It has no scores yet." : `What you see is the table at the end of epoch ${format.count(run.table.epoch)}.`;
    notice(place, "old", `No update from this run for ${format.ago(run.age_s).replace(" ago", "")}: it was interrupted, or its score server cannot be reached from here. ${source}`);
  } else if (run.status === "live" && run.table !== null && run.table.source === "storage") {
    notice(place, "old", `The score server cannot be reached from here: these data are from the end of epoch ${format.count(run.table.epoch)}, ${format.ago(run.table.age_s)}.`);
  } else if (run.status === "live" && tableAge !== null && tableAge > OLD_S) {
    notice(place, "old", `These data are ${format.seconds(Math.round(tableAge / 5) * 5)} old, and the run is still training.`);
  } else {
    notice(place, null);
  }
}

/** Does selection pay right now? In one sentence, by the run's own ledger. */
export function verdict(run, ledger) {
  const saved = ledger.saving;
  if (!ledger.available || !saved || saved.samples === null) {
    return "This run has not reported its time and samples yet.";
  }
  const far = run.status === "finished" ? "" : " so far";
  const samples = format.percent(saved.samples);
  if (Math.abs(saved.samples) < 0.0005) return `Every sample was trained on${far}, so nothing is saved yet.`;
  if (saved.seconds === null) {
    return `Selection saved ${samples} of the backward passes${far}. The time saved is unknown: this run has no full step to compare with.`;
  }
  if (saved.seconds > 0.01) return `Selection saves time${far}: ${format.percent(saved.seconds)} of what full training would have taken, with ${samples} fewer backward passes.`;
  if (saved.seconds < -0.01) return `Selection costs more than it saves${far}: ${format.percent(-saved.seconds)} more time than full training, for ${samples} fewer backward passes.`;
  return `Selection neither saves nor costs time${far}, with ${samples} fewer backward passes.`;
}

/** The key figures. */
export function showFigures(run, ledger, coverage, effective) {
  const accuracy = ledger.history.filter((one) => one.accuracy !== null).at(-1)?.accuracy ?? run.accuracy;
  const never = coverage && coverage.never_picked / coverage.num_samples;
  const figures = [
    ["Accuracy", accuracy === null || accuracy === undefined ? "–" : accuracy.toFixed(4), "on held-out samples"],
    ["Time saved", format.percent(ledger.saving?.seconds), "against this run's own full steps"],
    ["Backward passes saved", format.percent(ledger.saving?.samples), trained(ledger)],
    ["Compute saved", format.percent(ledger.saving?.cost), counted(ledger)],
    ...(ledger.tokens ? [["Tokens saved", format.percent(ledger.saving?.tokens), `${format.count(ledger.tokens.trained)} of ${format.count(ledger.tokens.full)} tokens`]] : []),
    ["Never picked", coverage ? format.count(coverage.never_picked) : "–", coverage ? `${format.percent(never)} of the samples` : ""],
    ["Effective samples", effective ? format.count(effective.effective) : "–", effective ? `weights are worth ${format.percent(effective.share)} of all` : ""],
    ["Table", run.table ? freshness(run.table) : "none yet", run.table ? origin(run) : "available after the first epoch"],
  ];
  const place = byId("figures");
  place.hidden = false;
  show(place, figures.map(([name, text, note]) => h("div", {}, h("dt", {}, name), h("dd", {}, text), h("dd", { class: "note" }, note))));
}

function trained(ledger) {
  return ledger.samples ? `${format.count(ledger.samples.trained)} of ${format.count(ledger.samples.full)} samples` : "";
}

function counted({ backward_cost: cost }) {
  return typeof cost === "number" ? `a backward pass counted as ${Number(cost.toFixed(2))} forward passes` : "";
}

function freshness(table) {
  return table.source === "live" ? "live" : `epoch ${format.count(table.epoch)}`;
}

function origin(run) {
  return run.table.source === "live" ? `step ${format.count(run.table.step)}, from the score server` : "from storage, at the epoch's end";
}
