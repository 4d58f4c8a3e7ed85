// Uploads what the form holds, and submits the job.

import { post } from "./api.js";
import { el } from "./dom.js";

// Returns the id of the new job. tell: shows what is done now.
export async function sendJob(input, tell) {
  const config = modelConfig(input), more = objectIn(input.more, "Other fields of the request") ?? {};
  if (!input.stored.value) {
    tell("Uploading the model ...");
    keep(input.stored, await upload("/v1/models", "checkpoint", input.checkpoint.files[0], config));
  }
  if (!input.dataset.value && input.data.files.length) {
    tell("Uploading the data ...");
    keep(input.dataset, await upload("/v1/datasets", "file", input.data.files[0]));
  }
  tell("Checking the job ...");
  return (await post("/v1/jobs", request(input, more))).id;
}

// Takes the uploaded object from now on, so that a second attempt does not upload it again.
function keep(select, found) {
  select.append(el("option", { value: found.id }, `${found.name}, ${found.id}`));
  select.value = found.id;
}

function upload(path, part, file, config) {
  if (!file) return post(path, config);
  const body = new FormData();
  if (config) body.append("config", JSON.stringify(config));
  body.append(part, file);
  return post(path, body);
}

function modelConfig(input) {
  const options = objectIn(input.options, "Arguments of timm's create_model");
  const preprocessing = objectIn(input.preprocessing, "Preprocessing");
  const weights = input.weights.value.trim();
  return {
    name: input.model.value.trim(), pretrained: input.pretrained.checked,
    ...(options && { options }), ...(preprocessing && { preprocessing }), ...(weights && { weights }),
  };
}

function objectIn(area, what) {
  const text = area.value.trim();
  if (!text) return undefined;
  let found;
  try { found = JSON.parse(text); } catch { /* it is refused below */ }
  if (found && typeof found === "object" && !Array.isArray(found)) return found;
  throw new Error(`${what}: ${text.slice(0, 60)} is not a JSON object. Give an object such as ${area.placeholder}`);
}

function request(input, { budgets = [], ...more }) {
  const budget = { metric: input.metric.value, limit: Number(input.limit.value) };
  const setting = { threads: Number(input.threads.value), batch: Number(input.batch.value) };
  if (/^(latency|memory)/.test(budget.metric)) budget.setting = setting;
  if (budget.metric.startsWith("latency")) budget.device = input.device.value;
  return {
    model: input.stored.value, dataset: input.dataset.value || null, budgets: [budget, ...budgets],
    method: input.method.value, trials: Number(input.trials.value), seed: Number(input.seed.value),
    precisions: input.precisions.value.split(","),
    ...(input.name.value.trim() ? { name: input.name.value.trim() } : {}), ...more,
  };
}
