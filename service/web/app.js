// Shows the view that belongs to the address.

import { remember, token } from "./api.js";
import { devices } from "./devices.js";
import { alarm, el } from "./dom.js";
import { job } from "./job.js";
import { jobs } from "./jobs.js";
import { submit } from "./submit.js";

const VIEWS = { jobs, submit, devices, token: askToken };
let leaving = new AbortController();

function askToken(main) {
  const input = el("input", { name: "token", type: "password", autocomplete: "off", value: token() });
  const keep = (event) => { event.preventDefault(); remember(input.value.trim()); location.hash = "#/jobs"; };
  main.replaceChildren(el("h1", {}, "Access token"), el("form", { onsubmit: keep },
    el("label", {}, "Access token from `vitfit token create NAME --scope submit`. The page keeps it until you close this tab.", input),
    el("button", { type: "submit" }, "Use this token")));
}

async function show() {
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving, main = document.getElementById("content");
  const [view, id] = location.hash.replace(/^#\/?/, "").split("/");
  for (const link of document.querySelectorAll("nav a")) {
    if (link.getAttribute("href") === `#/${view || "jobs"}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  main.removeAttribute("data-finished");
  try {
    await (view === "jobs" && id ? job(main, signal, id) : (VIEWS[view] ?? jobs)(main, signal));
  } catch (error) {
    if (signal.aborted) return;
    if (error.status === 401) askToken(main);
    main.append(alarm(error));
  }
}

addEventListener("hashchange", () => { show(); document.getElementById("content").focus(); });
show();
