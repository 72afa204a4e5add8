// The sample itself: a picture, or its text.

import { getText, route } from "../api.js";
import { h } from "../dom.js";

/** "image", "text" or "none", from the run's `preview`. */
export function kindOf(run) {
  if (run.preview === null) return "none";
  return run.preview.startsWith("image/") ? "image" : "text";
}

/** An element that shows sample `id`, or null where the run's task cannot; `name` is said of a picture. */
export function preview(run, id, name) {
  const kind = kindOf(run);
  const path = ["runs", run.run, "samples", id, "preview"];
  if (kind === "image") {
    return h("img", { class: "picture", src: route(path), alt: name, width: 28, height: 28, loading: "lazy", decoding: "async" });
  }
  if (kind === "text") {
    const words = h("span", { class: "words" }, "…");
    getText(path).then(
      (text) => (words.textContent = text),
      () => (words.textContent = "(cannot be shown)"),
    );
    return words;
  }
  return null;
}
