// The list of devices. For each profile it shows the error of the predictions.

import { get } from "./api.js";
import { el, table } from "./dom.js";

const percent = (value) => `${(100 * Math.abs(value)).toFixed(1)} %`;

function checked(device) {
  if (device.error) return `error for ${device.error.checked} published latencies: median ${percent(device.error.median)}, largest ${percent(device.error.worst)}`;
  return device.kind === "profile" ? "not checked" : "measured by each job";
}

export async function devices(place) {
  const found = (await get("/v1/devices")).devices;
  place.replaceChildren(el("h1", {}, "Devices"),
    table(["device", "kind", "reachable", "description", "checks"], found.map((device) => [
      device.name, device.kind, device.reachable ? "yes" : "no", device.description, checked(device),
    ])));
}
