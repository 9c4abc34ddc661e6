// One draw from the button to its pictures: where it stands in the queue, which step it is at, what it looks like.

import { ApiError, cancel, draw, statusOf } from "./api.js";
import { blobOf, randomId } from "./dom.js";

const ASK = 1000;
/** What the server says of a request that is on its way; what became of one, its stream says. */
const ON_ITS_WAY = ["enhancing", "queued", "running"];

/**
 * A request on its way.
 *
 * status: "sending", "enhancing", "queued", "running", "done", "failed" or "cancelled"; before: requests that come first;
 * step and steps; previews: a URL for each picture; pictures: what has come.
 */
export class Job {
  #isTold = false;

  constructor({ route, size, body, kept }, model, onChange) {
    Object.assign(this, { route, size, body, kept, model, onChange });
    this.id = randomId();
    this.created = Date.now();
    this.status = "sending";
    this.before = 0;
    this.step = 0;
    this.steps = 0;
    this.previews = [];
    this.pictures = [];
    this.error = null;
    this.abort = new AbortController();
  }

  get isOver() {
    return ["done", "failed", "cancelled"].includes(this.status);
  }

  get elapsed() {
    return (this.ended ?? Date.now()) - this.created;
  }

  async run() {
    const asking = setInterval(() => this.#ask(), ASK);
    const first = setTimeout(() => this.#ask(), ASK / 5);
    try {
      for await (const event of draw(this.route, this.body, this.id, this.abort.signal)) this.#told(event);
      this.#end(this.pictures.length ? "done" : "failed");
    } catch (error) {
      const isOurs = this.status === "cancelled" || error.name === "AbortError" || error.code === "cancelled";
      if (!isOurs && !(error instanceof ApiError)) console.error(error);
      this.error = isOurs ? null : error;
      this.#end(isOurs ? "cancelled" : "failed");
    } finally {
      clearInterval(asking);
      clearTimeout(first);
      for (const url of this.previews) if (url) URL.revokeObjectURL(url);
      this.previews = [];
    }
    return this;
  }

  /** End it. The server is told by its id, so that it can say that it has; where it cannot be told, we hang up. */
  async cancel() {
    if (this.isOver) return;
    try {
      await cancel(this.id);
    } catch {
      this.abort.abort();
    }
  }

  #end(status) {
    this.status = status;
    this.ended = Date.now();
    this.onChange(this);
  }

  #told(event) {
    const kind = event.type.split(".").pop();
    if (kind === "progress") {
      this.#isTold = true;
      Object.assign(this, { status: "running", step: event.step, steps: event.steps });
    } else if (kind === "partial_image") {
      if (this.previews[event.index]) URL.revokeObjectURL(this.previews[event.index]);
      this.previews[event.index] = URL.createObjectURL(blobOf(event.b64_json, "image/png"));
    } else if (kind === "completed") this.pictures.push(this.#picture(event));
    this.onChange(this);
  }

  #picture(event) {
    const { n: _, ...request } = this.kept;
    return {
      id: `${this.id}-${event.index}`,
      index: -event.index,
      created: this.created,
      seconds: (Date.now() - this.created) / 1000,
      model: this.model,
      format: event.output_format,
      size: event.size,
      seed: event.seed,
      request: { ...request, seed: event.seed },
      isEdit: this.route.endsWith("edits"),
      revised: event.revised_prompt ?? "",
      warnings: event.warnings ?? [],
      blob: blobOf(event.b64_json, `image/${event.output_format}`),
    };
  }

  /** How it stands, until its stream tells of steps: a proxy may keep that back, and of what comes before it says nothing. */
  async #ask() {
    if (this.isOver || this.#isTold) return;
    try {
      const { status, before = 0, step = 0, steps = 0 } = await statusOf(this.id);
      if (this.isOver || this.#isTold || !ON_ITS_WAY.includes(status)) return;
      Object.assign(this, { status, before, step, steps });
      this.onChange(this);
    } catch {
      // It is not there yet, or not any more: the stream says which.
    }
  }
}
