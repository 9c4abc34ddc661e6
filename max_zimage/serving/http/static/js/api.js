// This server's routes. Paths are relative, so that a proxy may put the page under a folder of its own.

const KEY = "max-zimage-key";

/** What a server answers in place of pictures: its words, and the field that they blame. */
export class ApiError extends Error {
  constructor(status, { message, param = null, code = "" }) {
    super(message);
    Object.assign(this, { status, param, code });
  }
}

export function keyOf() {
  return sessionStorage.getItem(KEY) ?? "";
}

/** Keep a key; the words of what is wrong with it, or nothing. A browser sends no header with letters beyond Latin-1. */
export function setKey(key) {
  if (/[^\x20-\x7e\xa0-\xff]/.test(key)) return "A key has none of these letters. Was something else pasted?";
  sessionStorage.setItem(KEY, key);
  return "";
}

async function call(path, { method = "GET", body, headers = {}, signal } = {}) {
  const key = keyOf();
  const sent = { ...headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  if (body !== undefined) sent["Content-Type"] = "application/json";
  const options = { method, headers: sent, signal, body: body === undefined ? undefined : JSON.stringify(body) };
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { message: "The server cannot be reached. Is it still running?", code: "unreachable" });
  }
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  throw new ApiError(answer.status, said.error ?? { message: `The server answered with ${answer.status}.` });
}

export async function capabilities() {
  return (await call("v1/capabilities")).json();
}

/** "ready", "loading", "restarting", "ending", or "unreachable". */
export async function health() {
  try {
    const answer = await fetch("health");
    return (await answer.json()).status;
  } catch {
    return "unreachable";
  }
}

export async function parametersOf(image) {
  return (await call("v1/parameters", { method: "POST", body: { image } })).json();
}

export async function statusOf(id) {
  return (await call(`v1/requests/${id}`)).json();
}

export async function cancel(id) {
  await call(`v1/requests/${id}`, { method: "DELETE" });
}

/**
 * Draw, and be told of it: events of the stream one by one, as objects with a type.
 * An error that comes as an event is thrown like one that comes at once.
 */
export async function* draw(route, body, id, signal) {
  const asked = { ...body, stream: true, progress: true, partial_images: 3 };
  const answer = await call(route, { method: "POST", body: asked, headers: { "X-Request-ID": id }, signal });
  for await (const event of events(answer.body)) {
    if (event.type === "error") throw new ApiError(200, event.error ?? { message: "The server ended the request." });
    yield event;
  }
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const lines = part.split("\n").filter((line) => line.startsWith("data:"));
      if (lines.length) yield JSON.parse(lines.map((line) => line.slice(5).trim()).join("\n"));
    }
  }
}
