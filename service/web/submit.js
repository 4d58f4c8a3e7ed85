// The form that uploads a model and data and submits a job.

import { get, post } from "./api.js";
import { alarm, el } from "./dom.js";

const METRICS = {
  latency_keep: "fraction of the original's latency", latency_ms: "latency of one run in ms",
  macs_keep: "fraction of the original's MACs", params_keep: "fraction of the original's parameters",
  file_keep: "fraction of the original's file size", memory_keep: "fraction of the original's memory",
};

const field = (label, input) => el("label", {}, label, input);
const options = (values) => Object.entries(values).map(([value, label]) => el("option", { value }, label));

export async function submit(main) {
  const [devices, methods] = await Promise.all([get("/v1/devices"), get("/v1/methods")]);
  const names = (list) => Object.fromEntries(list.map((item) => [item.name, item.name]));
  const input = {
    model: el("input", { name: "model", required: true, value: "deit_small_patch16_224", pattern: "[A-Za-z0-9][A-Za-z0-9_.\\-]*" }),
    options: el("input", { name: "options", placeholder: '{"num_classes": 10}' }),
    checkpoint: el("input", { name: "checkpoint", type: "file", accept: ".safetensors,.pth,.pt" }),
    data: el("input", { name: "data", type: "file", accept: ".npz,.zip,.tar,.gz,.tgz" }),
    metric: el("select", { name: "metric" }, options(METRICS)),
    limit: el("input", { name: "limit", type: "number", min: 0, step: "any", required: true, value: "0.6" }),
    device: el("select", { name: "device" }, options(names(devices.devices))),
    threads: el("input", { name: "threads", type: "number", min: 1, value: 1 }),
    method: el("select", { name: "method" }, options(names(methods.methods))),
    trials: el("input", { name: "trials", type: "number", min: 1, max: 2000, value: 32 }),
    name: el("input", { name: "name", maxlength: 100 }),
  };
  if (names(methods.methods).joint) input.method.value = "joint";
  const said = el("div", { role: "status" });
  const form = el("form", { onsubmit: (event) => { event.preventDefault(); send(input, form, said); } },
    field("Model: the name of a timm model", input.model),
    field("Arguments of timm's create_model, as JSON", input.options),
    field("Weights: a .safetensors or .pth file. Without a file, the server uses timm's weights.", input.checkpoint),
    field("Data: an .npz file, or a zip or tar file with one folder for each class. Without a file, accuracy is not assessed.",
      input.data),
    el("fieldset", {}, el("legend", {}, "Budget"), field("Limit", input.limit), field("Metric", input.metric),
      field("Device", input.device), field("Threads", input.threads)),
    field("Method", input.method), field("Trials", input.trials), field("Name of the job", input.name),
    el("button", { type: "submit" }, "Submit"), said);
  main.replaceChildren(el("h1", {}, "Submit a job"), form);
}

async function send(input, form, said) {
  const button = form.querySelector("button");
  button.disabled = true;
  const say = (message) => said.replaceChildren(el("p", {}, message));
  try {
    say("Uploading the model ...");
    const model = await uploadModel(input);
    let dataset = null;
    if (input.data.files.length) {
      say("Uploading the data ...");
      const body = new FormData();
      body.append("file", input.data.files[0]);
      dataset = (await post("/v1/datasets", body)).id;
    }
    say("Checking the job ...");
    location.hash = `#/jobs/${(await post("/v1/jobs", request(input, model, dataset))).id}`;
  } catch (error) {
    said.replaceChildren(alarm(error));
  } finally {
    button.disabled = false;
  }
}

async function uploadModel(input) {
  const config = { name: input.model.value.trim(), options: input.options.value.trim() ? JSON.parse(input.options.value) : {} };
  if (!input.checkpoint.files.length) return (await post("/v1/models", config)).id;
  const body = new FormData();
  body.append("config", JSON.stringify(config));
  body.append("checkpoint", input.checkpoint.files[0]);
  return (await post("/v1/models", body)).id;
}

function request(input, model, dataset) {
  const budget = { metric: input.metric.value, limit: Number(input.limit.value) };
  if (/^(latency|memory)/.test(budget.metric)) budget.setting = { threads: Number(input.threads.value) };
  if (budget.metric.startsWith("latency")) budget.device = input.device.value;
  return {
    model, dataset, budgets: [budget], method: input.method.value, trials: Number(input.trials.value),
    ...(input.name.value.trim() ? { name: input.name.value.trim() } : {}),
  };
}
