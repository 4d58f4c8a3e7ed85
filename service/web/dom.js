// Creates elements without a framework. Text is never parsed as markup, so users cannot inject any.

const SVG = "http://www.w3.org/2000/svg";
const HANDLERS = ["onclick", "onkeydown", "onsubmit", "oninput", "onchange", "ontoggle"];

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (HANDLERS.includes(name)) element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...present(children));
  return element;
}

const present = (children) => children.flat(Infinity).filter((child) => ![null, undefined, ""].includes(child));

export const el = (name, attributes, ...children) => filled(document.createElement(name), attributes, children);
export const svg = (name, attributes, ...children) => filled(document.createElementNS(SVG, name), attributes, children);

// Gives `place` these children. Whatever is there already and has not changed stays the same node, so keyboard focus,
// selected text and open tooltips stay too. Children with a data-key are found again by their key.
export const fill = (place, ...children) => mendChildren(place, [...el("div", {}, children).childNodes]);

const isSame = (a, b) => a.nodeName === b.nodeName && a.dataset?.key === b.dataset?.key;

function mend(old, fresh) {
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  for (const name of HANDLERS) old[name] = fresh[name];
  mendChildren(old, [...fresh.childNodes]);
}

function mendChildren(place, fresh) {
  let next = place.firstChild;
  const removeUntil = (end) => {
    while (next !== end) {
      const gone = next;
      next = next.nextSibling;
      gone.remove();
    }
  };
  for (const child of fresh) {
    let match = next;
    while (match && !isSame(match, child)) match = match.nextSibling;
    if (!match) {
      place.insertBefore(child, next);
      continue;
    }
    removeUntil(match);
    mend(match, child);
    next = match.nextSibling;
  }
  removeUntil(null);
}

// keys: one for each row, so that `fill` finds the row again.
export function table(head, rows, keys = []) {
  const cells = (kind, values) => values.map((value) => el(kind, kind === "th" ? { scope: "col" } : {}, value));
  return el("div", { class: "scroll" }, el("table", {},
    el("thead", {}, el("tr", {}, cells("th", head))),
    el("tbody", {}, rows.map((row, i) => el("tr", { "data-key": keys[i] }, cells("td", row))))));
}

export const alarm = (error) => el("p", { class: "error", role: "alert" }, error.message ?? String(error));

// Says one sentence to a screen reader. It is the only live region of the page apart from errors.
export function say(sentence) {
  const place = document.getElementById("said");
  if (place.textContent !== sentence) place.textContent = sentence;
}

export function number(value, digits = 3) {
  return value === null || value === undefined ? "-" : Number(value).toPrecision(digits);
}
