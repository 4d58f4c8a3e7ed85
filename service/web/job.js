// One job: its progress, its trials and its result. The view updates while the job runs.

import { follow, get, post, save, text } from "./api.js";
import { alarm, el, number, table } from "./dom.js";
import { shown } from "./jobs.js";
import { patchesView } from "./patches.js";
import { blocksPicture, trialsPlot } from "./plot.js";

const FINISHED = ["succeeded", "failed", "canceled"];

export async function job(main, signal, id) {
  const parts = Object.fromEntries(["head", "plot", "choice", "result", "patches", "files", "log"].map((name) => [name, el("section")]));
  main.replaceChildren(...Object.values(parts));
  const trials = [];
  let now = await get(`/v1/jobs/${id}`);
  const drawPlot = () => {
    const label = Object.keys(trials[0]?.costs ?? {})[0];
    const limit = now.request.budgets[0].limit;
    parts.plot.replaceChildren(el("h2", {}, "Trials"),
      trialsPlot(trials, label, limit, now.result?.delivered_trial, (trial) => choose(parts.choice, now, trial)));
  };
  const draw = () => { header(parts.head, now); drawPlot(); };
  draw();
  await follow(`/v1/jobs/${id}/events`, signal, (kind, body) => {
    if (kind === "trial") trials.push(body); else now = body;
    draw();
  });
  await Promise.all([result(parts.result, now), patches(parts.patches, id), files(parts.files, id), log(parts.log, id)].map((part) => part.catch(() => {})));
  main.setAttribute("data-finished", now.status);
}

function header(place, now) {
  const cancel = FINISHED.includes(now.status) ? null
    : el("button", { onclick: () => post(`/v1/jobs/${now.id}/cancel`).catch((error) => place.append(alarm(error))) }, "Cancel");
  place.replaceChildren(
    el("h1", {}, now.name || now.id),
    el("p", {}, el("span", { class: now.status }, now.status), now.stage && !FINISHED.includes(now.status) ? `, ${now.stage}` : "",
      now.guarantee ? `, guarantee: ${now.guarantee}` : "", " ", shown(now.progress)),
    now.error ? alarm({ message: now.error.detail }) : "", cancel ?? "");
}

function choose(place, now, trial) {
  const costs = Object.entries(trial.costs).map(([name, value]) => `${name}: ${number(value, 4)}`).join("; ");
  const deliver = async () => {
    try { location.hash = `#/jobs/${(await post(`/v1/jobs/${now.id}/deliver`, { trial: trial.number })).id}`; }
    catch (error) { place.append(alarm(error)); }
  };
  const button = now.status === "succeeded" && trial.number !== now.result?.delivered_trial
    ? el("button", { onclick: deliver }, `Deliver trial ${trial.number} instead`) : null;
  place.replaceChildren(el("p", { role: "status" }, `Trial ${trial.number}: score ${number(trial.score, 4)}; ${costs}.`), button ?? "");
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

async function files(place, id) {
  const found = (await get(`/v1/jobs/${id}/artifacts`)).artifacts;
  if (!found.length) return;
  const rows = found.map((file) => [
    el("button", { onclick: () => save(file.href, file.name).catch((error) => place.append(alarm(error))) }, file.name),
    `${(file.bytes / 1e6).toFixed(2)} MB`, el("code", {}, file.sha256.slice(0, 16)),
  ]);
  place.replaceChildren(el("h2", {}, "Files"), table(["file", "size", "start of SHA-256"], rows));
}

async function log(place, id) {
  const lines = await text(`/v1/jobs/${id}/log`);
  if (lines) place.replaceChildren(el("details", {}, el("summary", {}, "Log"), el("pre", { tabindex: 0 }, lines)));
}
