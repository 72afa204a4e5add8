// What is seen is in the address of the page, so that it can be shared, kept, and gone back to.

/** Where the service lies on its host, "/" at the end: "/", or what a proxy puts before it. */
export const root = new URL("../../", import.meta.url).pathname;

/** The query of this page, with setters that leave out what is empty. */
export const address = {
  get(name, otherwise = null) {
    return new URLSearchParams(location.search).get(name) ?? otherwise;
  },

  all() {
    return Object.fromEntries(new URLSearchParams(location.search));
  },

  /** Change some of it; a null or empty value leaves the query. `step`: one that the back button undoes. */
  set(changes, { step = false } = {}) {
    const query = new URLSearchParams(location.search);
    for (const [name, value] of Object.entries(changes)) {
      if (value === null || value === undefined || value === "") query.delete(name);
      else query.set(name, String(value));
    }
    const text = query.toString();
    const url = `${location.pathname}${text ? `?${text}` : ""}`;
    if (url === `${location.pathname}${location.search}`) return;
    if (step) history.pushState(null, "", url);
    else history.replaceState(null, "", url);
  },

  /** Call this whenever the reader goes back or forward. */
  watch(call) {
    addEventListener("popstate", call);
  },
};

/** The address of the page of a run. */
export function runPage(run) {
  return `${root}runs/${encodeURIComponent(run)}`;
}

/** The run that this page is about. */
export function runOfPage() {
  return decodeURIComponent(location.pathname.slice(root.length).split("/")[1] ?? "");
}
