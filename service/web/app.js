// Shows the view that belongs to the address.

import { remember, token } from "./api.js";
import { onBack, watch } from "./connection.js";
import { devices } from "./devices.js";
import { alarm, el, say } from "./dom.js";
import { job } from "./job.js";
import { jobs } from "./jobs.js";
import { submit } from "./submit.js";

const VIEWS = { jobs, submit, devices, token: askToken };
const NAMES = { jobs: "Jobs", submit: "Submit a job", devices: "Devices", token: "Access token" };
let leaving = new AbortController();
let failed = false;

// Shows the same address again after the token was given. Only the tab "Token" itself leads on to the jobs.
function askToken(place) {
  const input = el("input", { name: "token", type: "password", autocomplete: "off", value: token() });
  const keep = (event) => {
    event.preventDefault();
    remember(input.value.trim());
    if (address().view === "token") location.hash = "#/jobs";
    else show();
  };
  place.replaceChildren(el("h1", {}, "Access token"), el("form", { onsubmit: keep },
    el("label", {}, "Access token from `vitfit token create NAME --scope submit`. The page keeps it until you close "
      + "this tab.", input),
    el("button", { type: "submit" }, "Use this token")));
}

function address() {
  const [view, id] = location.hash.replace(/^#\/?/, "").split("/");
  return { view: view || "jobs", id };
}

// A view draws in a place of its own. If it answers late, its place is no longer on the page.
async function show() {
  leaving.abort();
  leaving = new AbortController();
  failed = false;
  const { signal } = leaving, { view, id } = address();
  const main = document.getElementById("content");
  const place = el("div", { class: ["jobs", "devices"].includes(view) && "data" });
  for (const link of document.querySelectorAll("nav a")) {
    if (link.getAttribute("href") === `#/${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  main.removeAttribute("data-finished");
  main.replaceChildren(place);
  document.title = `${NAMES[view] ?? view} - vitfit`;
  say("");
  try {
    await draw(place, signal, view, id);
  } catch (error) {
    if (!signal.aborted) sayWhy(place, error);
  }
}

function draw(place, signal, view, id) {
  if (view === "jobs" && id) return job(place, signal, id);
  if (VIEWS[view]) return VIEWS[view](place, signal);
  throw new Error(`This page has no view "${view}". Choose one above.`);
}

function sayWhy(place, error) {
  if (error.status === 401) {
    askToken(place);
    place.append(alarm(error));
    return;
  }
  failed = true;
  place.removeAttribute("class");
  place.replaceChildren(el("h1", {}, `${NAMES[address().view] ?? "This view"} cannot be shown`), alarm(error),
    el("button", { onclick: show }, "Try again"));
}

addEventListener("hashchange", () => { show(); document.getElementById("content").focus(); });
onBack(() => { if (failed) show(); });
show();
watch();
