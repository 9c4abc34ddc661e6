// Controls made from the list of fields that the server describes: a new field is here without a change to the page.

import { el } from "./dom.js";

const TITLES = {
  picture: "Sampling",
  guidance: "Guidance",
  nag: "Negative prompts without guidance (NAG)",
  pass: "Passes and progressive resolution",
  dype: "Large pictures (DyPE)",
  tile: "Tiled autoencoder",
  text: "How the prompt is read",
  layer: "Hidden layer",
  shift: "Sampling",
  noise: "Noise and variations",
  "": "The file",
};
const ACRONYMS = /\b(cfg|slg|apg|nag|vae)\b/g;

/** A value that cannot be sent, with the field that holds it. */
export class FieldError extends Error {
  constructor(name, message) {
    super(message);
    this.param = name;
  }
}

/** One generic control: its element, and its value as a request has it; undefined for the default. */
export class Field {
  constructor(described, onChange) {
    Object.assign(this, { name: described.name, schema: described.schema, described });
    this.usual = described.default;
    this.input = this.#control();
    this.input.addEventListener("input", onChange);
    const help = el("p", { className: "help", id: `${this.name}-help` }, this.#helpText());
    this.error = el("p", { className: "error", id: `${this.name}-error`, hidden: true });
    this.input.setAttribute("aria-describedby", `${help.id} ${this.error.id}`);
    const label = el("label", { for: this.input.id }, this.name.replaceAll("_", " ").replace(ACRONYMS, (word) => word.toUpperCase()));
    const isSwitch = this.#isSwitch;
    this.element = el(
      "div",
      { className: isSwitch ? "field generic switch" : "field generic", dataset: { field: this.name } },
      ...(isSwitch ? [this.input, label] : [label, this.input]),
      help,
      this.error,
    );
    this.set(undefined);
  }

  get words() {
    return `${this.name} ${this.name.replaceAll("_", " ")} ${this.described.help}`.toLowerCase();
  }

  /** What a request says; undefined where it is what the server does anyway. */
  get value() {
    const { schema, input } = this;
    if (this.#isSwitch) return input.checked === Boolean(this.usual) ? undefined : input.checked;
    if (input.validity.badInput) throw new FieldError(this.name, `${this.name} must be a number`);
    const text = input.value.trim();
    if (text === "") return undefined;
    const value = this.#parsed(text);
    return JSON.stringify(value) === JSON.stringify(this.usual) ? undefined : value;
  }

  get isChanged() {
    try {
      return this.value !== undefined;
    } catch {
      return true;
    }
  }

  set(value) {
    const shown = value ?? this.usual;
    if (this.#isSwitch) this.input.checked = Boolean(shown);
    else if (shown === null || shown === undefined) this.input.value = "";
    else this.input.value = Array.isArray(shown) ? shown.join(", ") : typeof shown === "object" ? JSON.stringify(shown) : shown;
    this.show();
  }

  /** Mark what is not the default. */
  show() {
    this.element.classList.toggle("changed", this.isChanged);
  }

  /** Whether it is on or off; where an enum has both words, saying neither is a third. */
  get #isSwitch() {
    return this.schema.type === "boolean" && !this.schema.enum;
  }

  #parsed(text) {
    const { schema, name } = this;
    if (schema.type === "boolean") return text === "true";
    if (schema.type === "integer" && Math.abs(Number(text)) > Number.MAX_SAFE_INTEGER) throw new FieldError(name, `${name} must be at most ${Number.MAX_SAFE_INTEGER} in a browser`);
    if (schema.type === "integer" || (schema.type === "number" && !schema.many)) return Number(text);
    if (schema.many || schema.type === "array") {
      const numbers = text.split(/[\s,]+/).filter(Boolean).map(Number);
      if (numbers.some(Number.isNaN)) throw new FieldError(name, `${name} must be numbers with commas between them`);
      return schema.many && numbers.length === 1 ? numbers[0] : numbers;
    }
    return text;
  }

  #control() {
    const { schema, name } = this;
    const id = name;
    if (schema.enum) {
      const none = this.usual === null ? [el("option", { value: "" }, "–")] : [];
      return el("select", { id, name }, ...none, ...schema.enum.map((word) => el("option", { value: word }, word)));
    }
    if (this.#isSwitch) return el("input", { type: "checkbox", id, name, role: "switch" });
    if (schema.type === "integer" || (schema.type === "number" && !schema.many)) {
      const step = schema.multipleOf ?? (schema.type === "integer" ? 1 : "any");
      const range = { min: schema.minimum ?? schema.exclusiveMinimum, max: schema.maximum ?? schema.exclusiveMaximum, step };
      return el("input", { type: "number", id, name, inputMode: "decimal", placeholder: "as usual", ...range });
    }
    if (this.described.section === "text" && schema.type === "string") return el("textarea", { id, name, rows: 2 });
    return el("input", { type: "text", id, name, autocomplete: "off", placeholder: "as usual" });
  }

  #helpText() {
    const { schema } = this;
    const low = schema.minimum ?? schema.exclusiveMinimum;
    const range = schema.maximum !== undefined && low !== undefined && schema.type !== "array" && schema.maximum <= Number.MAX_SAFE_INTEGER;
    const parts = [this.described.help];
    if ("exclusiveMaximum" in schema) parts.push(`Above ${low} and below ${schema.exclusiveMaximum}.`);
    else if (schema.usual) parts.push(`Usual: ${schema.usual}.`);
    else if (range) parts.push(`${"exclusiveMinimum" in schema ? "Above " : "From "}${low} to ${schema.maximum}.`);
    return parts.join(" ");
  }
}

/** All generic controls, in sections, with a search and a count of what is not the default. */
export class Fields {
  constructor(described, { place, find, none, count, details, onChange }) {
    Object.assign(this, { details, count, find, none });
    this.sections = new Map();
    const changed = () => {
      this.show();
      onChange();
    };
    this.list = described.map((each) => new Field(each, changed));
    const ordered = [...this.list.filter((each) => each.described.section), ...this.list.filter((each) => !each.described.section)];
    for (const field of ordered) this.#section(field.described.section, place).append(field.element);
    find.addEventListener("input", () => this.#search());
    this.show();
  }

  get(name) {
    return this.list.find((field) => field.name === name);
  }

  /** The part of a request that they make. */
  values() {
    return Object.fromEntries(this.list.map((field) => [field.name, field.value]).filter(([, value]) => value !== undefined));
  }

  set(values) {
    for (const field of this.list) field.set(values[field.name]);
    this.show();
  }

  show() {
    for (const field of this.list) field.show();
    const changed = this.list.filter((field) => field.isChanged).length;
    this.count.textContent = changed ? `${changed} changed` : "";
  }

  /** Open what hides a field, so that it can be looked at. */
  reveal(field) {
    this.details.open = true;
    this.find.value = "";
    this.#search();
    field.input.focus();
  }

  #section(name, place) {
    const title = TITLES[name] ?? name[0].toUpperCase() + name.slice(1);
    if (!this.sections.has(title)) {
      const grid = el("div", { className: "generics" });
      const section = el("fieldset", { className: "group" }, el("legend", {}, title), grid);
      place.append(section);
      this.sections.set(title, { section, grid });
    }
    return this.sections.get(title).grid;
  }

  #search() {
    const words = this.find.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const field of this.list) field.element.hidden = !words.every((word) => field.words.includes(word));
    for (const { section, grid } of this.sections.values()) {
      section.hidden = [...grid.children].every((each) => each.hidden);
    }
    this.none.hidden = [...this.sections.values()].some(({ section }) => !section.hidden);
  }
}
