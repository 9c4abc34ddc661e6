// The page of the API, made from the server's own description.

import { keyOf, setKey } from "./api.js";
import { $, el } from "./dom.js";

function kindOf(schema, all) {
  if (schema.$ref) return kindOf(all.components?.schemas?.[schema.$ref.split("/").pop()] ?? {}, all);
  if (schema.anyOf) return schema.anyOf.map((each) => kindOf(each, all)).filter((each) => each !== "null").join(" or ") || "null";
  if (schema.enum) return schema.enum.map((each) => JSON.stringify(each)).join(" or ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.type === "array") return `list of ${kindOf(schema.items ?? {}, all)}`;
  return schema.type ?? "any";
}

function fields(schema, all) {
  const required = new Set(schema.required ?? []);
  const rows = Object.entries(schema.properties ?? {}).map(([name, each]) =>
    el("tr", {}, el("th", { scope: "row" }, el("code", {}, name), required.has(name) ? " *" : ""), el("td", {}, kindOf(each, all)), el("td", {}, ...words(each.description ?? ""))));
  const head = el("tr", {}, ...["Field", "Type", "What it is"].map((text) => el("th", { scope: "col" }, text)));
  return el("div", { className: "scrolls", tabIndex: 0, role: "region", "aria-label": "Fields" }, el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows)));
}

/** Text in which `this` is code. */
function words(text) {
  return text.split("`").map((each, at) => (at % 2 ? el("code", {}, each) : each));
}

function route(path, method, said, all) {
  const body = said.requestBody?.content?.["application/json"]?.schema;
  const text = (said.description ?? said.summary ?? "").split("\n\n").map((each) => el("p", {}, ...words(each)));
  const title = el("h2", {}, el("span", { className: "method" }, method.toUpperCase()), " ", el("code", {}, path));
  return el("section", { className: "route" }, title, ...text, ...(body?.properties ? [el("details", {}, el("summary", {}, `${Object.keys(body.properties).length} fields`), fields(body, all))] : []));
}

async function show() {
  const key = keyOf();
  const answer = await fetch("openapi.json", { headers: key ? { Authorization: `Bearer ${key}` } : {} });
  $("doc-key").hidden = answer.status !== 401;
  if (!answer.ok) {
    $("doc-said").textContent = answer.status === 401 ? "The description of the API is shown with the key." : `The server answered with ${answer.status}.`;
    return;
  }
  const all = await answer.json();
  $("doc-said").textContent = `${all.info.title} ${all.info.version}. ${all.info.description}`;
  const routes = Object.entries(all.paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, said]) => route(path, method, said, all)));
  $("routes").replaceChildren(...routes);
}

$("doc-key").addEventListener("submit", (event) => {
  event.preventDefault();
  const wrong = setKey($("key").value.trim());
  if (wrong) $("doc-said").textContent = wrong;
  else show();
});
await show();
