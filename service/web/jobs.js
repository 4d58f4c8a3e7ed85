// The list of jobs.

import { get } from "./api.js";
import { pause } from "./connection.js";
import { el, fill, say, table } from "./dom.js";

const REFRESH_MS = 2000;
export const FINISHED = ["succeeded", "failed", "canceled"];

// The progress of a job. A finished job has no bar and no time left, whatever its last estimate was.
export function shown(job) {
  const { trials_done: done, trials_total: total, seconds_left: seconds } = job.progress;
  if (job.status === "succeeded") return done ? [`${done} trial${done === 1 ? "" : "s"}`] : [];
  if (FINISHED.includes(job.status)) return [`${done} of ${total}`];
  const left = seconds ? `, about ${Math.ceil(seconds / 60)} min left` : "";
  return [el("progress", { max: total || 1, value: done, "aria-label": "trials" }), ` ${done} of ${total}${left}`];
}

// What a running job does now.
export const doing = (job) => (FINISHED.includes(job.status) ? ""
  : [job.stage, job.progress.note].filter(Boolean).join(": "));

const limits = (request) => request.budgets.map((b) => `${b.metric} ${b.limit}`).join(", ");

const row = (job) => [
  el("a", { href: `#/jobs/${job.id}` }, job.name || job.id), el("span", { class: job.status }, job.status), doing(job),
  el("span", {}, shown(job)), limits(job.request), new Date(job.created_at).toLocaleString(),
];

function summary(found) {
  const count = (status) => found.filter((job) => job.status === status).length;
  const known = ["queued", "running", "canceling", ...FINISHED].filter(count);
  return known.map((status) => `${count(status)} ${status}`).join(", ");
}

export async function jobs(place, signal) {
  let token = null, said = "";
  const turn = (to) => { token = to; draw().catch(() => {}); };  // the next turn says what is wrong
  const draw = async () => {
    const page = await get(`/v1/jobs?page_size=50${token ? `&page_token=${encodeURIComponent(token)}` : ""}`);
    if (signal.aborted) return;
    const found = page.jobs, next = page.next_page_token;
    const list = found.length
      ? table(["job", "status", "stage", "trials", "budgets", "created"], found.map(row), found.map((job) => job.id))
      : el("p", {}, "No jobs yet. ", el("a", { href: "#/submit" }, "Submit one."));
    fill(place, el("h1", {}, "Jobs"), list,
      token && el("button", { "data-key": "newest", onclick: () => turn(null) }, "Newest jobs"),
      next && el("button", { "data-key": "older", onclick: () => turn(next) }, "Older jobs"));
    const sentence = found.length ? `Jobs: ${summary(found)}.` : "";
    if (sentence !== said) say(said = sentence);
  };
  await draw();
  while (!signal.aborted) {
    await pause(REFRESH_MS);
    if (signal.aborted) return;
    // Without an answer, the banner says so. The next turn tries again, as it does for a server that is busy.
    await draw().catch((error) => { if (error.status && ![429, 503].includes(error.status)) throw error; });
  }
}
