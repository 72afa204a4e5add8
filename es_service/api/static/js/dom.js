// Elements out of code. Text is always set as text: nothing that comes from the server is ever parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** `condition && element` stands for nothing where the condition does not hold. */
function isShown(child) {
  return child !== null && child !== undefined && child !== false;
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value" && "value" in element) element.value = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter(isShown));
  return element;
}

/** Make an HTML element: h("a", {href: "/"}, "text", child); attributes that begin with "on" are listeners. */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Make an SVG element. */
export function s(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/** Return the element of this id. */
export function byId(id) {
  return document.getElementById(id);
}

/** Replace what is inside an element. */
export function show(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter(isShown));
  return element;
}

/** An empty state: a heading and what to do about it. */
export function empty(title, text, command = null) {
  return h("div", { class: "empty" }, h("h3", {}, title), h("p", {}, text), command && h("code", {}, command));
}

/** A table behind "The same as a table": `update` replaces its rows, and leaves open what the reader has opened. */
export class TableBelow {
  constructor(label, header) {
    this.body = h("tbody");
    const head = h("thead", {}, h("tr", {}, header.map((name) => h("th", { scope: "col", class: "number" }, name))));
    const scroll = h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label }, h("table", {}, head, this.body));
    this.element = h("details", { hidden: true }, h("summary", {}, "The same as a table"), scroll);
  }

  /** @param rows lists of texts; without any, there is nothing to open. */
  update(rows) {
    this.element.hidden = rows.length === 0;
    show(this.body, rows.map((row) => h("tr", {}, row.map((text) => h("td", { class: "number" }, text)))));
  }
}

/** Set a notice ("old" or "away"), or clear it with null; the same text is not announced twice. */
export function notice(element, kind, text) {
  const before = element.textContent;
  if (kind === null) {
    if (before !== "") element.replaceChildren();
  } else if (before !== text || element.firstChild?.dataset.kind !== kind) {
    element.replaceChildren(h("p", { class: "notice", "data-kind": kind }, text));
  }
}

/** Call a function once, `wait` ms after the last of several calls. */
export function debounced(call, wait) {
  let timer = 0;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...args), wait);
  };
}

const NARROWEST = 100; // pixels; a chart has no room in less

/** Call `draw(width)` whenever the room inside the element becomes wider or narrower; returns a way to draw again. */
export function drawn(element, draw) {
  let width = 0;
  const observer = new ResizeObserver(([entry]) => {
    const now = Math.floor(entry.contentRect.width);
    if (now === width) return;
    width = now;
    if (width >= NARROWEST) draw(width);
  });
  observer.observe(element);
  return () => width >= NARROWEST && draw(width);
}

/** Return a colour of the style sheet as it is now, light or dark, in a form that a canvas takes. */
export function colour(name) {
  const probe = h("span");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}
