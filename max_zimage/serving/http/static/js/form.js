// The composer: what it says is one body of the image routes, and a body puts it back.

import { $, el, randomSeed } from "./dom.js";
import { FieldError, Fields } from "./fields.js";
import { Loras } from "./loras.js";
import { Sizes } from "./sizes.js";
import { Start } from "./start.js";

/** Fields that the page shows in a way of its own, or has no use for. */
const OWN = new Set([
  "prompt", "negative_prompt", "size", "n", "steps", "guidance_scale", "seed", "step_cache", "strength", "image",
  "mask", "mask_image", "outpaint", "composite", "resize", "loras", "template", "features", "stream", "partial_images",
  "progress", "quality", "response_format", "background", "model", "user", "moderation", "input_fidelity",
  "safety_identifier", "style", "slg", "num_inference_steps", "soft_mask",
  "enhance", "enhance_seed", // the picture's seed draws the words too
]);
const PLAIN = ["prompt", "negative_prompt", "steps", "guidance_scale", "n", "step_cache", "template"];

export class Form {
  constructor(capabilities) {
    this.capabilities = capabilities;
    this.described = Object.fromEntries(capabilities.fields.map((each) => [each.name, each]));
    this.isLocked = false;
    this.sizes = new Sizes(capabilities, () => this.start?.note());
    this.start = new Start(capabilities, this.sizes, (message, param) => this.showError(message, param));
    this.loras = new Loras(capabilities);
    const places = { place: $("fields"), find: $("find"), none: $("find-none"), count: $("advanced-count"), details: $("advanced") };
    const generic = capabilities.fields.filter((each) => !OWN.has(each.name) && each.schema.format !== "binary");
    this.fields = new Fields(generic, { ...places, onChange: () => this.note() });
    this.#sliders();
    this.#seed();
    this.#lists();
    $("n").max = capabilities.limits.n;
    $("reset").addEventListener("click", () => this.fields.set({}));
    $("form").addEventListener("input", () => this.note());
    this.apply({});
  }

  /** A route, its body, and what the history remembers of it: the body without pictures. */
  async request() {
    if (!this.isLocked) $("seed").value = randomSeed();
    const body = { prompt: $("prompt").value, ...this.fields.values(), ...this.loras.values() };
    if ($("negative_prompt").value.trim() && !$("negative_prompt").disabled) body.negative_prompt = $("negative_prompt").value;
    body.seed = this.#whole("seed");
    body.n = this.#whole("n");
    body.guidance_scale = this.#guidance();
    if (body.passes === undefined && body.sigmas === undefined) body.steps = this.#whole("steps");
    const cache = $("step_cache").value.trim();
    if (cache && cache !== this.described.step_cache?.default) body.step_cache = cache;
    if ($("template").value) body.template = $("template").value;
    if ($("enhance").checked !== Boolean(this.described.enhance?.default)) body.enhance = $("enhance").checked;
    const size = this.sizes.text;
    if (!this.start.isSet) return { route: "v1/images/generations", size, body: { ...body, size }, kept: { ...body, size } };
    const { pictures, values } = await this.start.values();
    return { route: "v1/images/edits", size, body: { ...body, ...values, ...pictures }, kept: { ...body, ...values } };
  }

  /** Put a body back; what it does not say is the default. */
  apply(body) {
    const usual = (name) => body[name] ?? this.described[name]?.default ?? "";
    for (const name of PLAIN) $(name).value = name === "n" ? (body.n ?? 1) : usual(name);
    $("enhance").checked = this.capabilities.features.enhance && Boolean(usual("enhance"));
    if (Array.isArray(body.guidance_scale)) $("guidance_scale").value = body.guidance_scale.join(", ");
    if (body.size) this.sizes.set(...body.size.split("x"));
    this.fields.set(body);
    this.loras.set(body.loras ?? []);
    this.start.apply(body);
    if (body.seed !== undefined) this.useSeed(body.seed);
    for (const input of document.querySelectorAll(".slider input:not([type=range])")) input.dispatchEvent(new Event("input"));
    this.note();
  }

  /** Keep a seed for the next picture. */
  useSeed(seed) {
    $("seed").value = seed;
    this.lock(true);
  }

  lock(isLocked) {
    this.isLocked = isLocked;
    $("lock").setAttribute("aria-pressed", String(isLocked));
    $("seed-help").textContent = isLocked ? "Kept: the same picture again" : "Another one for each draw";
  }

  /** What depends on other fields. */
  note() {
    let negative = true;
    try {
      negative = [this.#guidance()].flat().some((scale) => scale > 0) || (this.fields.get("nag_scale")?.value ?? 0) > 0;
    } catch {
      // It will be said when it is sent.
    }
    $("negative_prompt").disabled = !negative;
    $("negative_prompt-help").hidden = negative;
    const template = this.capabilities.templates.find((each) => each.name === $("template").value);
    $("template-help").textContent = template?.description ?? "";
  }

  /** Show what is wrong beside the field that is to blame, or above the button. */
  showError(message, param) {
    this.clearErrors();
    const field = param === null ? undefined : this.fields.get(param);
    const place = document.getElementById(`${param}-error`);
    const input = field?.input ?? document.getElementById(param === "size" ? "width" : param) ?? null;
    if (place === null) {
      Object.assign($("form-error"), { textContent: message, hidden: false });
      return;
    }
    Object.assign(place, { textContent: message, hidden: false });
    Object.assign($("form-error"), { textContent: `Not drawn. See ${param.replaceAll("_", " ")}.`, hidden: false });
    if (field) this.fields.reveal(field);
    input?.setAttribute("aria-invalid", "true");
    (input ?? place).scrollIntoView({ block: "center" });
    input?.focus();
  }

  clearErrors() {
    for (const each of $("form").querySelectorAll(".error")) each.hidden = true;
    for (const each of $("form").querySelectorAll("[aria-invalid]")) each.removeAttribute("aria-invalid");
  }

  #whole(name) {
    const text = $(name).value.trim();
    if (!/^[0-9]+$/.test(text)) throw new FieldError(name, `${name} must be a whole number, got ${text || "nothing"}`);
    if (Number(text) > Number.MAX_SAFE_INTEGER) throw new FieldError(name, `${name} must be at most ${Number.MAX_SAFE_INTEGER} in a browser`);
    return Number(text);
  }

  #guidance() {
    const numbers = $("guidance_scale").value.split(/[\s,]+/).filter(Boolean).map(Number);
    if (!numbers.length || numbers.some(Number.isNaN)) throw new FieldError("guidance_scale", "guidance must be a number, or one for each step with commas between them");
    return numbers.length === 1 ? numbers[0] : numbers;
  }

  #sliders() {
    $("steps-range").max = Math.min(this.capabilities.limits.steps, Math.max(50, 2 * this.capabilities.defaults.steps));
    $("steps").min = 1;
    $("steps").max = this.capabilities.limits.steps;
    for (const range of document.querySelectorAll(".slider input[type=range][id$=-range]")) {
      const input = $(range.id.replace("-range", ""));
      range.addEventListener("input", () => {
        input.value = range.value;
        input.dispatchEvent(new Event("input", { bubbles: true }));
      });
      input.addEventListener("input", () => {
        const value = Number(input.value);
        range.disabled = Number.isNaN(value);
        if (!range.disabled) range.value = value;
      });
    }
  }

  #seed() {
    $("seed").value = randomSeed();
    this.lock(false);
    $("dice").addEventListener("click", () => {
      $("seed").value = randomSeed();
    });
    $("lock").addEventListener("click", () => this.lock(!this.isLocked));
    $("seed").addEventListener("input", () => this.lock(true));
  }

  #lists() {
    const { templates, step_caches: caches, features, enhancer } = this.capabilities;
    for (const id of ["enhance-field", "enhance-help"]) $(id).hidden = !features.enhance;
    $("enhance-help").textContent = `By ${enhancer}, which adds what you do not say.`;
    $("step_caches").append(...caches.map((value) => el("option", { value })));
    $("template-field").hidden = templates.length === 0;
    const groups = Map.groupBy(templates, (each) => each.category || "others");
    const option = ({ name }) => el("option", { value: name }, name.replaceAll("-", " "));
    $("template").append(el("option", { value: "" }, "None"));
    for (const [label, members] of groups) $("template").append(el("optgroup", { label }, ...members.map(option)));
  }
}
