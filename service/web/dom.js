// Creates elements without a framework. Text is never parsed as markup, so users cannot inject any.

const SVG = "http://www.w3.org/2000/svg";

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

export const el = (name, attributes, ...children) => filled(document.createElement(name), attributes, children);
export const svg = (name, attributes, ...children) => filled(document.createElementNS(SVG, name), attributes, children);

export function table(head, rows) {
  const cells = (kind, values) => el("tr", {}, values.map((value) => el(kind, kind === "th" ? { scope: "col" } : {}, value)));
  return el("div", { class: "scroll" }, el("table", {},
    el("thead", {}, cells("th", head)), el("tbody", {}, rows.map((row) => cells("td", row)))));
}

export const alarm = (error) => el("p", { class: "error", role: "alert" }, error.message ?? String(error));

export function number(value, digits = 3) {
  return value === null || value === undefined ? "-" : Number(value).toPrecision(digits);
}
