// What is shown: one picture or draw large, all others small below it.

import { $, announce, copy, el, seconds } from "./dom.js";
import * as history from "./history.js";
import { Job } from "./jobs.js";

const NARROW = "(max-width: 900px)";
const SHAPES = ["a red star on a blue background", "a green circle on a black background", "a white ring on a red background"];
const SCENES = ["a lighthouse in a storm, oil on canvas", "a fox asleep in autumn leaves, soft morning light", "a shop window at night with the words OPEN LATE"];
const SHAPES_ALONE = "tiny-zimage"; // the embedded model, which has learnt nothing else

export class Stage {
  constructor(actions) {
    this.actions = actions;
    this.items = []; // jobs and pictures, the newest first
    this.urls = new Map();
    this.shown = null;
    this.examples = [];
    $("history-clear").addEventListener("click", () => this.#clear());
    $("thumbs").addEventListener("keydown", (event) => this.#arrows(event));
  }

  async load() {
    try {
      this.items.push(...(await history.all()));
    } catch (error) {
      this.#said(`This browser keeps no history: ${error.message}`);
    }
    this.show(this.items[0] ?? null);
    this.#thumbs();
  }

  /** Prompts to try with a model. */
  suggest(model) {
    this.examples = model === SHAPES_ALONE ? SHAPES : SCENES;
    if (this.shown === null) this.show(null);
  }

  /** Show a draw from its beginning. */
  begin(job) {
    this.items.unshift(job);
    this.show(job);
    this.#thumbs();
    if (matchMedia(NARROW).matches) $("hero").scrollIntoView({ block: "start" });
  }

  /** A draw has changed. */
  note(job) {
    if (job.isOver && job.pictures.length) this.#finished(job);
    else if (job.isOver && job.status === "cancelled") this.#remove(job);
    const thumb = this.#thumbOf(job);
    if (thumb) this.#fillThumb(thumb, job);
    if (this.shown === job) this.#updateJob(job);
  }

  show(item) {
    this.shown = item;
    const hero = $("hero");
    hero.replaceChildren(...(item === null ? this.#empty() : item instanceof Job ? this.#job(item) : this.#picture(item)));
    if (item instanceof Job) this.#updateJob(item);
    this.#press();
  }

  /** Forget a draw that came to nothing, and say no more of it. */
  drop(job) {
    this.#remove(job);
  }

  async #finished(job) {
    const at = this.items.indexOf(job);
    if (at < 0) return;
    const pictures = job.pictures.toSorted((one, other) => other.index - one.index);
    this.items.splice(at, 1, ...pictures);
    if (this.shown === job) this.show(pictures[0]);
    this.#thumbs();
    announce(`${pictures.length === 1 ? "The picture is" : `${pictures.length} pictures are`} there, after ${seconds(job.elapsed)}.`);
    try {
      for (const picture of pictures) {
        const gone = await history.keep(picture);
        this.items = this.items.filter((each) => !gone.includes(each.id));
      }
      this.#said("");
    } catch (error) {
      this.#said(`The last picture is not kept: ${error.message}`);
    }
    document.body.dataset.kept = String(this.items.length);
  }

  #remove(item) {
    const at = this.items.indexOf(item);
    this.items = this.items.filter((each) => each !== item);
    if (this.shown === item) this.show(this.items[Math.min(at, this.items.length - 1)] ?? null);
    this.#thumbs();
  }

  async #forget(picture) {
    await history.forget(picture.id);
    this.#remove(picture);
    announce("The picture is deleted.");
    $("hero").focus();
  }

  async #clear() {
    if (!confirm("Delete all pictures of the history in this browser?")) return;
    await history.clear();
    this.items = this.items.filter((each) => each instanceof Job);
    this.show(this.items[0] ?? null);
    this.#thumbs();
  }

  #said(text) {
    const pictures = this.items.filter((each) => !(each instanceof Job)).length;
    $("history-said").textContent = text || `${pictures} of at most ${history.MOST}, kept in this browser`;
  }

  #url(picture) {
    if (!this.urls.has(picture.id)) this.urls.set(picture.id, URL.createObjectURL(picture.blob));
    return this.urls.get(picture.id);
  }

  #empty() {
    const tries = this.examples.map((prompt) => el("button", { type: "button", className: "try", on: { click: () => this.actions.prompt(prompt) } }, prompt));
    return [
      el("div", { className: "empty" },
        el("div", { className: "easel", "aria-hidden": "true" }, el("i"), el("i"), el("i")),
        el("h2", {}, "Nothing drawn yet"),
        el("p", {}, "Say what the picture should show, and press Draw. Everything stays on this server and in this browser."),
        el("div", { className: "tries" }, ...tries)),
    ];
  }

  #job(job) {
    const [width, height] = job.size.split("x");
    const count = job.kept.n ?? 1;
    const frames = Array.from({ length: count }, () => {
      const frame = el("div", { className: "frame" });
      frame.style.aspectRatio = `${width} / ${height}`;
      return frame;
    });
    const dismiss = el("button", { type: "button", id: "dismiss", hidden: true, on: { click: () => this.#remove(job) } }, "Dismiss");
    const stop = el("button", { type: "button", id: "cancel", on: { click: () => job.cancel() } }, "Cancel", el("kbd", {}, "Esc"));
    return [
      el("figure", { className: "drawing", "aria-label": "Being drawn" },
        el("div", { className: count > 1 ? "frames several" : "frames" }, ...frames),
        el("div", { className: "beside" },
          el("figcaption", {}, job.kept.prompt),
          el("div", { className: "progress" },
            el("progress", { id: "progress", "aria-label": "Steps", max: 1, value: 0 }),
            el("span", { id: "progress-said" }), el("span", { id: "elapsed", className: "help" }), stop, dismiss),
          el("p", { className: "error banner", id: "job-error", hidden: true }))),
    ];
  }

  #updateJob(job) {
    const said = $("progress-said");
    const bar = $("progress");
    $("elapsed").textContent = seconds(job.elapsed);
    $("cancel").hidden = job.isOver;
    $("dismiss").hidden = !job.isOver;
    if (job.status === "running") {
      Object.assign(bar, { max: job.steps, value: job.step });
      said.textContent = `Step ${job.step} of ${job.steps}`;
      if (job.step === 0 || job.step * 4 % job.steps < 4) announce(`Drawing, ${Math.round((100 * job.step) / job.steps)} percent`);
    } else if (job.status === "enhancing") {
      said.textContent = "Writing the prompt out";
      bar.removeAttribute("value");
      announce(said.textContent);
    } else if (job.status === "queued") {
      said.textContent = job.before ? `Waiting, ${job.before} ${job.before === 1 ? "request" : "requests"} before this one` : "Next in line";
      bar.removeAttribute("value");
      announce(said.textContent);
    } else if (job.status === "failed") {
      said.textContent = "Not drawn";
      bar.value = 0;
      Object.assign($("job-error"), { hidden: false, textContent: job.error?.message ?? "The server answered without a picture." });
      announce(`Not drawn: ${$("job-error").textContent}`);
    } else said.textContent = "Sending";
    job.previews.forEach((url, index) => {
      const frame = $("hero").querySelectorAll(".frame")[index];
      if (!frame) return;
      const shown = frame.querySelector("img") ?? frame.appendChild(el("img", { className: "preview", alt: `Preview ${index + 1}` }));
      if (shown.src !== url) shown.src = url;
    });
  }

  #picture(picture) {
    const { request } = picture;
    const name = `${picture.seed}-${request.prompt.slice(0, 40).replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "")}.${picture.format}`;
    const button = (text, click, more = {}) => el("button", { type: "button", on: { click }, ...more }, text);
    const copied = button("Copy parameters", async (event) => {
      const place = event.currentTarget;
      try {
        await copy(JSON.stringify(request, null, 2));
        place.textContent = "Copied";
      } catch (error) {
        place.textContent = `Not copied: ${error.message}`;
      }
      announce(place.textContent);
      setTimeout(() => {
        place.textContent = "Copy parameters";
      }, 1500);
    });
    const facts = [["Seed", picture.seed], ["Size", picture.size.replace("x", " × ")], ["Steps", request.steps ?? "passes"], ["Guidance", [request.guidance_scale].flat().join(", ")], ["Time", `${picture.seconds.toFixed(1)} s`], ["Model", picture.model]];
    const others = Object.entries(request).filter(([key]) => !["prompt", "negative_prompt", "seed", "size", "steps", "guidance_scale"].includes(key));
    facts.push(...others.map(([key, value]) => [key.replaceAll("_", " "), typeof value === "object" ? JSON.stringify(value) : String(value)]));
    return [
      el("figure", { className: "picture" },
        el("img", { className: "large", src: this.#url(picture), alt: request.prompt, id: "large" }),
        el("div", { className: "beside" },
          el("figcaption", {}, request.prompt, request.negative_prompt ? el("span", { className: "help" }, ` without ${request.negative_prompt}`) : null),
          ...this.#revised(picture, button),
          el("dl", { className: "facts" }, ...facts.map(([term, value]) => el("div", {}, el("dt", {}, term), el("dd", {}, String(value))))),
          el("div", { className: "actions" },
            el("a", { className: "button", href: this.#url(picture), download: name }, "Download"),
            button("Use as start image", () => this.actions.start(picture)),
            button("Same seed", () => this.actions.seed(picture.seed)),
            button("Use its settings", () => this.actions.settings(picture)),
            copied,
            button("Delete", () => this.#forget(picture), { className: "quiet" })))),
    ];
  }

  /** What an enhancer made of the prompt, or why it did not. */
  #revised({ revised, warnings = [] }, button) {
    const said = warnings.map((text) => el("p", { className: "help warning" }, text));
    if (!revised) return said;
    const take = button("Use this prompt", () => this.actions.revised(revised), { className: "quiet" });
    return [...said, el("div", { className: "revised", id: "revised" }, el("p", {}, revised), take)];
  }

  #thumbs() {
    for (const id of [...this.urls.keys()]) {
      if (this.items.some((each) => each.id === id)) continue;
      URL.revokeObjectURL(this.urls.get(id));
      this.urls.delete(id);
    }
    const list = $("thumbs");
    const known = new Map([...list.querySelectorAll("button")].map((each) => [each.dataset.id, each.parentElement]));
    const rows = this.items.map((item) => known.get(item.id) ?? el("li", {}, this.#thumb(item)));
    list.replaceChildren(...rows);
    $("gallery-part").hidden = this.items.length === 0;
    this.#said("");
    this.#press();
  }

  #press() {
    for (const thumb of $("thumbs").querySelectorAll("button")) thumb.setAttribute("aria-pressed", String(thumb.dataset.id === this.shown?.id));
  }

  #thumb(item) {
    const thumb = el("button", { type: "button", className: "thumb", dataset: { id: item.id }, "aria-pressed": "false" });
    thumb.addEventListener("click", () => {
      this.show(this.items.find((each) => each.id === item.id) ?? null);
      if (matchMedia(NARROW).matches) $("hero").scrollIntoView({ block: "start" });
    });
    this.#fillThumb(thumb, item);
    return thumb;
  }

  #fillThumb(thumb, item) {
    if (!(item instanceof Job)) {
      thumb.replaceChildren(el("img", { src: this.#url(item), alt: item.request.prompt, loading: "lazy" }));
      thumb.title = item.request.prompt;
      return;
    }
    const said = item.status === "running" ? `${item.step}/${item.steps}` : item.status === "failed" ? "!" : "…";
    const preview = item.previews.find(Boolean);
    const shown = `${item.status} ${said} ${preview}`;
    if (thumb.dataset.said === shown) return;
    thumb.dataset.said = shown;
    thumb.replaceChildren(...(preview ? [el("img", { src: preview, alt: "", className: "preview" })] : []), el("span", { className: "badge" }, said));
    thumb.setAttribute("aria-label", `${item.status}: ${item.kept.prompt}`);
  }

  #thumbOf(item) {
    return [...$("thumbs").querySelectorAll("button")].find((each) => each.dataset.id === item.id);
  }

  #arrows(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    const thumbs = [...$("thumbs").querySelectorAll("button")];
    const next = thumbs[thumbs.indexOf(document.activeElement) + by];
    if (!next) return;
    event.preventDefault();
    next.focus();
    this.show(this.items.find((each) => each.id === next.dataset.id) ?? null);
  }
}
