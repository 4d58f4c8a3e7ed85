// Calls of the server's API. Every failure throws an Error with the message of the server.

const TOKEN = "vitfit-token";

export const token = () => sessionStorage.getItem(TOKEN) || "";

export function remember(secret) {
  if (secret) sessionStorage.setItem(TOKEN, secret);
  else sessionStorage.removeItem(TOKEN);
}

function headers(more = {}) {
  return token() ? { Authorization: `Bearer ${token()}`, ...more } : more;
}

async function answered(response) {
  if (response.ok) return response;
  let problem = {};
  try { problem = await response.json(); } catch { /* the answer is not from vitfit, but for example from a proxy */ }
  const error = new Error(problem.detail || `The server answered with the status ${response.status}. Try again later.`);
  error.status = response.status;
  throw error;
}

export async function get(path) {
  return (await answered(await fetch(path, { headers: headers() }))).json();
}

export async function text(path) {
  return (await answered(await fetch(path, { headers: headers() }))).text();
}

export async function post(path, body) {
  const form = body instanceof FormData;
  const sent = form ? body : JSON.stringify(body ?? {});
  const kind = form ? {} : { "Content-Type": "application/json" };
  return (await answered(await fetch(path, { method: "POST", headers: headers(kind), body: sent }))).json();
}

export async function save(path, name) {
  const blob = await (await answered(await fetch(path, { headers: headers() }))).blob();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// Reads server-sent events with fetch, because EventSource cannot send a token. After a broken connection, the stream
// continues after the last event.
export async function follow(path, signal, onEvent) {
  let last = "0", pause = 500;
  while (!signal.aborted) {
    try {
      const response = await answered(await fetch(path, { headers: headers({ "Last-Event-ID": last }), signal }));
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        const parts = (rest + value).split(/\r?\n\r?\n/);
        rest = parts.pop();
        for (const part of parts) {
          const fields = Object.fromEntries(part.split(/\r?\n/).map((line) => line.split(/: (.*)/s).slice(0, 2)));
          if (!fields.event) continue;
          last = fields.id ?? last;
          pause = 500;
          onEvent(fields.event, JSON.parse(fields.data));
        }
      }
    } catch (error) {
      if (signal.aborted || error.status) throw error;
      await new Promise((wake) => setTimeout(wake, pause));
      pause = Math.min(2 * pause, 10_000);
    }
  }
}
