// The one place that pending to the server. Every failure is one of two: it said no (ApiError), or it did not answer.

import { root } from "./address.js";

/** The server answered with an error: its status, title and hint. */
export class ApiError extends Error {
  constructor(status, problem) {
    super(problem.detail ?? problem.title ?? `the server answered ${status}`);
    this.name = "ApiError";
    this.status = status;
    this.hint = problem.hint ?? null;
  }
}

/** The server did not answer, or what stands before it did, or it said that it cannot at present. */
export class ServerAway extends Error {
  constructor(cause, detail = null) {
    super("the server does not answer");
    this.name = "ServerAway";
    this.cause = cause;
    this.detail = detail; // what it said itself, where it answered that it cannot
  }
}

const LIMIT_MS = 15_000;

/** The address of a route below /v1, with its query; empty values are left out, lists are repeated. */
export function route(path, query = {}) {
  const words = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== null && one !== undefined && one !== "") words.append(name, one);
    }
  }
  const text = words.toString();
  return `${root}v1/${path.map(encodeURIComponent).join("/")}${text ? `?${text}` : ""}`;
}

/** Get a JSON answer; `signal` gives up on it. */
export async function get(path, query = {}, { signal } = {}) {
  const response = await fetched(route(path, query), "application/json", signal);
  try {
    return await response.json();
  } catch (error) {
    throw failure(error, signal);
  }
}

/** Get a text answer. */
export async function getText(path, query = {}, { signal } = {}) {
  const response = await fetched(route(path, query), "text/plain", signal);
  return response.text();
}

async function fetched(url, accept, signal) {
  const limit = AbortSignal.timeout(LIMIT_MS);
  const either = signal ? AbortSignal.any([signal, limit]) : limit;
  let response;
  try {
    response = await fetch(url, { headers: { accept }, signal: either, credentials: "same-origin" });
  } catch (error) {
    throw failure(error, signal);
  }
  if (response.status === 401) {
    location.assign(`${root}login?${new URLSearchParams({ next: location.pathname + location.search })}`);
    throw new ApiError(401, { title: "sign in first" });
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  if (response.status >= 502 && response.status <= 504) throw new ServerAway(new Error(String(response.status)), problem.detail ?? null);
  throw new ApiError(response.status, problem);
}

function failure(error, signal) {
  return signal?.aborted ? signal.reason : new ServerAway(error);
}

/** Whether this failure is our own giving up, which nobody has to be told of. */
export function isAborted(error) {
  return error?.name === "AbortError";
}

/** One request at a time of a kind: a newer one gives up on the older. */
export class Latest {
  #controller = null;

  async run(call) {
    this.#controller?.abort();
    const controller = new AbortController();
    this.#controller = controller;
    return call(controller.signal);
  }
}
