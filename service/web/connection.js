// Knows whether the server answers. While it does not, a banner says so and the shown data are grey.

import { say } from "./dom.js";

const CALM_MS = 5000, ANXIOUS_MS = 1000, PATIENCE_MS = 8000;
const BACK = "server-back";
let lost = false;

export const pause = (ms) => new Promise((wake) => setTimeout(wake, ms));
export const onBack = (react) => addEventListener(BACK, react);

// Waits until the server is back, but at most for this time.
export const pauseOrBack = (ms) => Promise.race([
  pause(ms), new Promise((wake) => addEventListener(BACK, wake, { once: true })),
]);

function show(sentence) {
  const banner = document.getElementById("banner");
  banner.textContent = sentence;
  banner.hidden = !lost;
  document.body.classList.toggle("stale", lost);
  say(sentence);
}

export function silent() {
  if (lost) return;
  lost = true;
  const time = new Date().toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
  show(`Connection lost at ${time}. Trying again.`);
}

export function heard() {
  if (!lost) return;
  lost = false;
  show("");
  dispatchEvent(new Event(BACK));
}

// A proxy before the server answers for it with one of these statuses. The server's own 503 has the type of a problem.
export const isOfProxy = (response) => [502, 503, 504].includes(response.status)
  && !(response.headers.get("Content-Type") ?? "").includes("problem+json");

export async function ping() {
  try {
    const response = await fetch("/livez", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
    if (isOfProxy(response)) silent(); else heard();
  } catch { silent(); }
  return !lost;
}

export async function watch() {
  for (;;) {
    await pause(lost ? ANXIOUS_MS : CALM_MS);
    if (lost || !document.hidden) await ping();
  }
}
