// Small helpers. Text goes in as text, never as HTML.

/** The element of an id, which has to be there. */
export function $(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`no element #${id}`);
  return found;
}

/** An element with properties, attributes where a name has a dash, and children. */
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name === "on") for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    else if (name === "dataset") Object.assign(made.dataset, value);
    else if (name.includes("-") || name === "for" || name === "list" || name === "role") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((each) => each !== null && each !== undefined));
  return made;
}

/** Say something to screen readers, and to nobody else. */
export function announce(text) {
  const live = $("live");
  if (live.textContent !== text) live.textContent = text;
}

/** A random id; `crypto.randomUUID` is there over https and on this machine only. */
export function randomId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** A seed that a person can read and type. */
export function randomSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0];
}

/** A file as a data URL. */
export function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(blob);
  });
}

/** Bytes of base64 as a file; `fetch` of a data URL is a connection that the page's policy forbids. */
export function blobOf(base64, kind) {
  return new Blob([Uint8Array.from(atob(base64), (sign) => sign.charCodeAt(0))], { type: kind });
}

/** Copy a text, also where the clipboard's own interface is missing, as over plain http. */
export async function copy(text) {
  if (navigator.clipboard && window.isSecureContext) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const area = el("textarea", { value: text, className: "sr" });
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("this browser lets the page copy nothing");
}

/** Seconds as people say them. */
export function seconds(milliseconds) {
  const value = milliseconds / 1000;
  return value < 60 ? `${value.toFixed(1)} s` : `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
}
