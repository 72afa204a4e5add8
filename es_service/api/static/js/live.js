// Following a run: the server tells of changes (server-sent events); where it cannot, we ask. It says which, and when
// nobody answers.

import { get, route, ServerAway } from "./api.js";

const POLL_MS = 3000;
const MOST_MS = 20_000;
const TELL_AGAIN_MS = 30_000; // between tries to be told instead of asking
const ENDED_MS = 8000; // how often to look whether the server of a finished run is still there

/**
 * Follow a run until the page goes; `first` is what is known of it, or null.
 *
 * onRun(run)                     what `/v1/runs/{run}` says, whenever it changed
 * onLink(kind, sinceMs, detail)  "told" or "asking": all is well; "away": nobody answers, or the server says that what it
 *                                answers from has gone; since when, and what it said of it
 */
export function follow(run, first, { onRun, onLink }) {
  let source = null;
  let timer = 0;
  let awaySince = null;
  let wait = POLL_MS;
  let triedAt = 0;
  let last = first && identity(first);
  let ended = false;

  const take = (found) => {
    const text = identity(found);
    if (text !== last) onRun(found);
    last = text;
  };

  const listen = () => {
    triedAt = Date.now();
    source = new EventSource(route(["runs", run, "events"]));
    source.addEventListener("run", (event) => {
      awaySince = null;
      wait = POLL_MS;
      onLink("told");
      take(JSON.parse(event.data));
    });
    source.addEventListener("away", (event) => {
      awaySince ??= Date.now();
      onLink("away", awaySince, JSON.parse(event.data).detail);
    });
    source.addEventListener("finished", (event) => {
      ended = true;
      stop();
      take(JSON.parse(event.data));
      timer = setTimeout(ask, ENDED_MS);
    });
    source.addEventListener("error", () => {
      stop();
      ask();
    });
  };

  const ask = async () => {
    try {
      const found = await get(["runs", run]);
      awaySince = null;
      wait = ended ? ENDED_MS : POLL_MS;
      ended = found.status === "finished";
      onLink("asking");
      take(found);
    } catch (error) {
      if (error instanceof ServerAway) {
        awaySince ??= Date.now();
        onLink("away", awaySince, error.detail);
      }
      wait = ended ? POLL_MS : Math.min(MOST_MS, wait * 1.5);
    }
    const again = awaySince === null && !ended && Date.now() - triedAt > TELL_AGAIN_MS;
    timer = setTimeout(again ? listen : ask, wait);
  };

  const stop = () => {
    source?.close();
    source = null;
    clearTimeout(timer);
  };

  document.addEventListener("visibilitychange", () => {
    stop();
    if (!document.hidden) listen();
  });
  addEventListener("pagehide", stop);
  addEventListener("pageshow", (event) => event.persisted && listen());
  listen();
}

/** Equal as long as nothing but time has passed. */
function identity(run) {
  return JSON.stringify({ ...run, age_s: null, table: run.table && { ...run.table, age_s: null } });
}
