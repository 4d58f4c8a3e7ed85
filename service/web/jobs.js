// The list of jobs.

import { get } from "./api.js";
import { el, table } from "./dom.js";

const REFRESH_MS = 2000;

export function shown(progress) {
  const left = progress.seconds_left ? `, about ${Math.ceil(progress.seconds_left / 60)} min left` : "";
  return [el("progress", { max: progress.trials_total || 1, value: progress.trials_done, "aria-label": "trials" }),
    ` ${progress.trials_done} of ${progress.trials_total}${left}`];
}

const limits = (request) => request.budgets.map((b) => `${b.metric} ${b.limit}`).join(", ");

export async function jobs(main, signal) {
  const place = el("div");
  main.replaceChildren(el("h1", {}, "Jobs"), place);
  let token = null;
  const draw = async () => {
    const page = await get(`/v1/jobs?page_size=50${token ? `&page_token=${encodeURIComponent(token)}` : ""}`);
    const rows = page.jobs.map((job) => [
      el("a", { href: `#/jobs/${job.id}` }, job.name || job.id), el("span", { class: job.status }, job.status), job.stage ?? "",
      el("span", {}, shown(job.progress)), limits(job.request), new Date(job.created_at).toLocaleString(),
    ]);
    const more = page.next_page_token && el("button", { onclick: () => { token = page.next_page_token; draw(); } }, "Older jobs");
    place.replaceChildren(...(rows.length ? [table(["job", "status", "stage", "trials", "budgets", "created"], rows)]
      : [el("p", {}, "No jobs yet. ", el("a", { href: "#/submit" }, "Submit one."))]), ...(more ? [more] : []));
  };
  await draw();
  const timer = setInterval(() => draw().catch(() => {}), REFRESH_MS);
  signal.addEventListener("abort", () => clearInterval(timer));
}
