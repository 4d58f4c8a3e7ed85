// The form that hands in a model and data and submits a job.

import { get } from "./api.js";
import { alarm, el, say } from "./dom.js";
import { sendJob } from "./submission.js";

const METRICS = {
  latency_keep: "fraction of the original's latency", latency_ms: "latency of one run in ms",
  macs_keep: "fraction of the original's MACs", params_keep: "fraction of the original's parameters",
  file_keep: "fraction of the original's file size", memory_keep: "fraction of the original's memory",
};
const PRECISIONS = { fp32: "fp32", int8: "int8", "fp32,int8": "fp32 and int8: the search chooses", fp16: "fp16" };
const MODEL = "deit_small_patch16_224";
const WEIGHTS = ".safetensors,.pth,.pt,.bin,.ckpt,.tar", WHOLE = ".onnx,.zip";
const PREPROCESSING = '{"size": [3, 224, 224], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], '
  + '"crop": 0.9, "interpolation": "bicubic"}';
const OTHERS = '{"keep_spatial": true, "budgets": [{"metric": "params_keep", "limit": 0.7}]}';

const field = (label, input) => el("label", {}, label, input);
const group = (name, ...fields) => el("fieldset", {}, el("legend", {}, name), fields);
const options = (values) => Object.entries(values).map(([value, label]) => el("option", { value }, label));
const title = (item) => `${item.name}, ${new Date(item.created_at).toLocaleString()}, ${item.id}`;
const stored = (list) => Object.fromEntries(list.map((item) => [item.id, title(item)]));
const names = (list) => Object.fromEntries(list.map((item) => [item.name, item.name]));

export async function submit(place) {
  const [devices, methods, models, datasets] = await Promise.all(
    ["/v1/devices", "/v1/methods", "/v1/models?page_size=100", "/v1/datasets?page_size=100"].map(get));
  const input = {
    ...modelInputs(models.models), ...jobInputs(devices.devices, methods.methods),
    dataset: el("select", { name: "dataset" }, options({ "": "a new file, or none", ...stored(datasets.datasets) })),
    data: el("input", { name: "data", type: "file", accept: ".npz,.zip,.tar,.gz,.tgz,.bz2,.xz,.zst" }),
  };
  if (names(methods.methods).joint) input.method.value = "joint";
  const said = el("div");
  const form = el("form", { onsubmit: (event) => { event.preventDefault(); send(input, form, said); } },
    ...mainFields(input), moreFields(input), el("button", { type: "submit" }, "Submit"), said);
  form.onchange = () => showFitting(form, input);
  input.checkpoint.onchange = () => nameByFile(input);
  showFitting(form, input);
  place.replaceChildren(el("h1", {}, "Submit a job"), form);
}

const modelInputs = (models) => ({
  stored: el("select", { name: "stored" }, options({ "": "a new model", ...stored(models) })),
  model: el("input", { name: "model", required: true, value: MODEL, pattern: "[A-Za-z0-9][A-Za-z0-9_.\\-]*" }),
  checkpoint: el("input", { name: "checkpoint", type: "file", accept: `${WEIGHTS},${WHOLE}` }),
  pretrained: el("input", { name: "pretrained", type: "checkbox", checked: true }),
  options: el("textarea", { name: "options", rows: 2, placeholder: '{"num_classes": 10, "img_size": 32}' }),
  preprocessing: el("textarea", { name: "preprocessing", rows: 4, placeholder: PREPROCESSING }),
  weights: el("input", { name: "weights", maxlength: 200, placeholder: "ema" }),
});

const jobInputs = (devices, methods) => ({
  metric: el("select", { name: "metric" }, options(METRICS)),
  limit: el("input", { name: "limit", type: "number", min: 0, step: "any", required: true, value: "0.6" }),
  device: el("select", { name: "device" }, options(names(devices))),
  threads: el("input", { name: "threads", type: "number", min: 1, value: 1 }),
  batch: el("input", { name: "batch", type: "number", min: 1, value: 1 }),
  method: el("select", { name: "method" }, options(names(methods))),
  trials: el("input", { name: "trials", type: "number", min: 1, max: 2000, value: 32 }),
  precisions: el("select", { name: "precisions" }, options(PRECISIONS)),
  seed: el("input", { name: "seed", type: "number", min: 0, value: 0 }),
  more: el("textarea", { name: "more", rows: 3, placeholder: OTHERS }),
  name: el("input", { name: "name", maxlength: 100 }),
});

const mainFields = (input) => [
  group("Model", field("Which model", input.stored),
    el("fieldset", { class: "bare new-model" },
      field("Model: the name of a timm model. With a file that holds the model itself: any name.", input.model),
      field("Weights: a .safetensors or .pth file for this timm model. Or the model itself: an .onnx file, or a .zip "
        + "file with an ONNX file and its data, or with a folder of Hugging Face or timm. Without a file, the server "
        + "uses timm's weights.", input.checkpoint))),
  group("Data", field("Which data set", input.dataset),
    el("fieldset", { class: "bare new-data" },
      field("Data: an .npz file, or a zip or tar file with one folder for each class. Without data, accuracy is not "
        + "assessed.", input.data))),
  group("Budget", field("Limit", input.limit), field("Metric", input.metric),
    el("fieldset", { class: "bare of-latency" }, field("Device", input.device)),
    el("fieldset", { class: "bare of-setting" }, field("Threads", input.threads))),
  field("Method", input.method), field("Trials", input.trials), field("Name of the job", input.name),
];

const moreFields = (input) => el("details", {}, el("summary", {}, "More options"),
  el("fieldset", { class: "new-model" }, el("legend", {}, "Model"),
    field("Arguments of timm's create_model, as JSON", input.options),
    field("Preprocessing of an image, as JSON. Without it, the server uses what the model file says, or timm's "
      + "configuration. A model that was trained with other values loses accuracy.", input.preprocessing),
    field("Which weights to take if the file has several sets: ema, model, or the name of a set", input.weights),
    el("label", { class: "choice" }, input.pretrained,
      "Without a file, download timm's weights. Otherwise the weights are random.")),
  group("Job", el("fieldset", { class: "bare of-setting" }, field("Images in one run", input.batch)),
    field("Precision", input.precisions), field("Seed", input.seed),
    field("Other fields of the request, as JSON. The API describes them. Budgets in it are added to the one above.",
      input.more)));

// Hides what does not belong to the choices made. A disabled fieldset takes no part in the check of the form.
function showFitting(form, input) {
  const fits = {
    "new-model": !input.stored.value, "new-data": !input.dataset.value,
    "of-latency": /^latency/.test(input.metric.value), "of-setting": /^(latency|memory)/.test(input.metric.value),
  };
  for (const [name, isFitting] of Object.entries(fits)) {
    for (const part of form.getElementsByClassName(name)) part.hidden = part.disabled = !isFitting;
  }
}

// A file that holds the model itself gives the model its name.
function nameByFile(input) {
  const [, stem] = input.checkpoint.files[0]?.name.match(/^(.*)\.(onnx|zip)$/i) ?? [];
  if (!stem || input.model.value !== MODEL) return;
  input.model.value = stem.replace(/[^A-Za-z0-9_.-]+/g, "-").replace(/^[^A-Za-z0-9]+/, "") || "model";
}

async function send(input, form, said) {
  const button = form.querySelector("button");
  const tell = (sentence) => { said.replaceChildren(el("p", {}, sentence)); say(sentence); };
  button.disabled = true;
  try {
    location.hash = `#/jobs/${await sendJob(input, tell)}`;
  } catch (error) {
    said.replaceChildren(alarm(error));
  } finally {
    button.disabled = false;
    showFitting(form, input);
  }
}
