// One job: its progress, its trials and its result. The view updates while the job runs.

import { follow, get, post, save, text } from "./api.js";
import { alarm, el, fill, number, say, table } from "./dom.js";
import { doing, FINISHED, shown } from "./jobs.js";
import { patchesView } from "./patches.js";
import { blocksPicture, trialsPlot } from "./plot.js";

const PARTS = ["head", "wrong", "plot", "choice", "result", "patches", "files", "log"];

export async function job(place, signal, id) {
  const parts = Object.fromEntries(PARTS.map((name) => [name, el("section")]));
  const trials = [];
  let now = await get(`/v1/jobs/${id}`);
  const isOver = () => FINISHED.includes(now.status);
  place.replaceChildren(...Object.values(parts));
  document.title = `${now.name || now.id} - vitfit`;
  const drawPlot = () => {
    const label = Object.keys(trials[0]?.costs ?? {})[0];
    const limit = now.request.budgets[0].limit;
    fill(parts.plot, el("h2", {}, "Trials"),
      trialsPlot(trials, label, limit, now.result?.delivered_trial, (trial) => choose(parts, now, trial)));
  };
  const draw = () => {
    header(parts, now);
    drawPlot();
  };
  draw();
  const refreshLog = logView(parts.log, id);
  await follow(`/v1/jobs/${id}/events`, signal, (kind, body) => {
    if (kind === "trial") trials.push(body); else now = body;
    draw();
    refreshLog();
  }, isOver);
  if (signal.aborted) return;
  const ended = await Promise.allSettled([result(parts.result, now), patches(parts.patches, id), files(parts, id)]);
  const failure = ended.find((part) => part.status === "rejected");
  if (failure) parts.wrong.replaceChildren(alarm(failure.reason));
  refreshLog();
  if (!signal.aborted) document.getElementById("content").setAttribute("data-finished", now.status);
}

// Does something that the user has asked for. A failure is shown below the head of the page.
async function attempt(parts, action) {
  parts.wrong.replaceChildren();
  try { await action(); } catch (error) { parts.wrong.replaceChildren(alarm(error)); }
}

function header(parts, now) {
  const name = now.name || now.id, isOver = FINISHED.includes(now.status), stage = doing(now);
  const cancel = () => attempt(parts, () => post(`/v1/jobs/${now.id}/cancel`));
  fill(parts.head,
    el("h1", {}, name),
    el("p", {}, el("span", { class: now.status }, now.status), stage ? `, ${stage}` : "",
      now.guarantee ? `, guarantee: ${now.guarantee}` : ""),
    el("p", {}, shown(now)),
    now.error ? alarm({ message: now.error.detail }) : null,
    isOver ? null : el("button", { onclick: cancel }, "Cancel"));
  sayOnce(parts, `Job ${name}: ${now.status}${isOver || !now.stage ? "" : `, ${now.stage}`}.`);
}

// Says the sentence unless it was the last one of this job, because each trial draws the head again.
function sayOnce(parts, sentence) {
  if (parts.said === sentence) return;
  parts.said = sentence;
  say(sentence);
}

function choose(parts, now, trial) {
  const costs = Object.entries(trial.costs).map(([name, value]) => `${name}: ${number(value, 4)}`).join("; ");
  const deliver = () => attempt(parts, async () => {
    location.hash = `#/jobs/${(await post(`/v1/jobs/${now.id}/deliver`, { trial: trial.number })).id}`;
  });
  const button = now.status === "succeeded" && trial.number !== now.result?.delivered_trial
    ? el("button", { onclick: deliver }, `Deliver trial ${trial.number} instead`) : null;
  const sentence = `Trial ${trial.number}: score ${number(trial.score, 4)}; ${costs}.`;
  fill(parts.choice, el("p", {}, sentence), button);
  say(sentence);
}

async function result(place, now) {
  if (now.status !== "succeeded" || !now.result?.rows) return;
  place.replaceChildren(el("h2", {}, "Before and after"), table(["", "original", "delivered"], now.result.rows),
    ...(now.result.notes ?? []).map((note) => el("p", {}, note)));
  const report = JSON.parse(await text(`/v1/jobs/${now.id}/artifacts/report.json`));
  if (report.blocks) place.append(el("h2", {}, "What is kept of each block"), el("div", { class: "scroll" }, blocksPicture(report.blocks)));
}

async function patches(place, id) {
  const found = (await get(`/v1/jobs/${id}/artifacts`)).artifacts;
  if (!found.some((file) => file.name === "patches.json")) return;
  place.replaceChildren(...patchesView(JSON.parse(await text(`/v1/jobs/${id}/artifacts/patches.json`))));
}

async function files(parts, id) {
  const found = (await get(`/v1/jobs/${id}/artifacts`)).artifacts;
  if (!found.length) return;
  const rows = found.map((file) => [
    el("button", { onclick: () => attempt(parts, () => save(file.href, file.name)) }, file.name),
    size(file.bytes), el("code", {}, file.sha256.slice(0, 16)),
  ]);
  parts.files.replaceChildren(el("h2", {}, "Files"), table(["file", "size", "start of SHA-256"], rows));
}

function size(bytes) {
  if (bytes < 1e3) return `${bytes} bytes`;
  return bytes < 1e5 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(2)} MB`;
}

// Shows the log while it is open. Returns the function that reads it again.
function logView(place, id) {
  const lines = el("pre", { tabindex: 0 });
  let isReading = false;
  const refresh = async () => {
    if (isReading || !view.open) return;
    isReading = true;
    try { fill(lines, await text(`/v1/jobs/${id}/log`) || "The log is empty."); } catch { /* the banner says it */ }
    isReading = false;
  };
  const view = el("details", { ontoggle: refresh }, el("summary", {}, "Log"), lines);
  place.replaceChildren(view);
  return refresh;
}
