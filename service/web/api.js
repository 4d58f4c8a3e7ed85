// Calls of the server's API. Every failure throws an Error with a message for people: the server's own, if it answered.

import { heard, isOfProxy, pauseOrBack, ping, silent } from "./connection.js";

const TOKEN = "vitfit-token";

export const token = () => sessionStorage.getItem(TOKEN) || "";

export function remember(secret) {
  if (secret) sessionStorage.setItem(TOKEN, secret);
  else sessionStorage.removeItem(TOKEN);
}

function headers(more = {}) {
  return token() ? { Authorization: `Bearer ${token()}`, ...more } : more;
}

const NO_ANSWER = "The server does not answer. Check that it runs and that this computer can reach it. Then try again.";
const BROKEN_OFF = "The connection broke before the server had answered. Try again. If this happens with every upload, "
  + "the file may be larger than the server allows.";

// Sends a request, and returns the answer if it is a good one.
async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Error(await ping() ? BROKEN_OFF : NO_ANSWER);
  }
  if (isOfProxy(response)) {
    silent();
    throw new Error(NO_ANSWER);
  }
  heard();
  if (response.ok) return response;
  let problem = {};
  try { problem = await response.json(); } catch { /* the answer is not from vitfit, but for example from a proxy */ }
  const error = new Error(problem.detail || `The server answered with the status ${response.status}. Try again later.`);
  error.status = response.status;
  throw error;
}

export const get = async (path) => (await call(path, { headers: headers() })).json();

export const text = async (path) => (await call(path, { headers: headers() })).text();

export async function post(path, body) {
  const form = body instanceof FormData;
  const sent = form ? body : JSON.stringify(body ?? {});
  const kind = form ? {} : { "Content-Type": "application/json" };
  return (await call(path, { method: "POST", headers: headers(kind), body: sent })).json();
}

export async function save(path, name) {
  const blob = await (await call(path, { headers: headers() })).blob();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// Reads server-sent events with fetch, because EventSource cannot send a token. After a broken connection, the stream
// continues after the last event. A server that stops closes the stream in good order, so `isOver` says when to end.
export async function follow(path, signal, onEvent, isOver) {
  let last = "0", wait_ms = 500;
  while (!signal.aborted) {
    try {
      const response = await call(path, { headers: headers({ "Last-Event-ID": last }), signal });
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        const parts = (rest + value).split(/\r?\n\r?\n/);
        rest = parts.pop();
        for (const part of parts) {
          const fields = Object.fromEntries(part.split(/\r?\n/).map((line) => line.split(/: (.*)/s).slice(0, 2)));
          if (!fields.event) continue;
          last = fields.id ?? last;
          wait_ms = 500;
          onEvent(fields.event, JSON.parse(fields.data));
        }
      }
      if (isOver()) return;
    } catch (error) {
      if (signal.aborted || [401, 403, 404].includes(error.status)) throw error;
    }
    await ping();
    await pauseOrBack(wait_ms);
    wait_ms = Math.min(2 * wait_ms, 10_000);
  }
}
