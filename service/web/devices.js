// Devices, and how right what is said of each of them is.

import { get } from "./api.js";
import { el, table } from "./dom.js";

const percent = (value) => `${(100 * Math.abs(value)).toFixed(1)} %`;

function checked(device) {
  if (device.error) return `${device.error.checked} published latencies: median error ${percent(device.error.median)}, worst ${percent(device.error.worst)}`;
  return device.kind === "profile" ? "not checked" : "measured by each job";
}

export async function devices(main) {
  const found = (await get("/v1/devices")).devices;
  main.replaceChildren(el("h1", {}, "Devices"),
    table(["device", "kind", "reachable", "description", "checks"], found.map((device) => [
      device.name, device.kind, device.reachable ? "yes" : "no", device.description, checked(device),
    ])));
}
