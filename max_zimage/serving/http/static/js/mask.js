// A mask is painted over the start image, in its own pixels: white is drawn anew, black is kept.

import { $ } from "./dom.js";
import { hasGreys, paintOf } from "./greys.js";

const LEAST = 900; // pixels of the longer side that a small image is shown in, so that the brush's edge is smooth
const PAINT = [255, 47, 168];
const COLOUR = `rgb(${PAINT.join()})`;

export class MaskEditor {
  constructor() {
    this.canvas = $("mask-canvas");
    this.strokes = [];
    this.mask = document.createElement("canvas");
    this.tint = document.createElement("canvas");
    this.spot = { x: 0, y: 0 };
    this.#pointer();
    this.canvas.addEventListener("keydown", (event) => this.#key(event));
    $("erase").addEventListener("click", () => this.#erase(!this.isErasing));
    $("undo").addEventListener("click", () => this.#undo());
    $("invert").addEventListener("click", () => this.#add({ kind: "invert" }));
    $("wipe").addEventListener("click", () => this.#add({ kind: "clear" }));
    $("brush").addEventListener("input", () => this.#draw());
  }

  /** Forget what was painted. */
  forget() {
    this.strokes = [];
  }

  /** Go on from a mask that was not painted here. */
  begin(greys) {
    this.strokes = [{ kind: "mask", canvas: paintOf(greys, PAINT), isGrey: hasGreys(greys) }];
  }

  /** Paint over an image; the mask's brightness, null for an empty mask, undefined if it was given up. */
  edit(bitmap) {
    const before = [...this.strokes];
    this.bitmap = bitmap;
    const longest = Math.max(bitmap.width, bitmap.height);
    this.enlarged = Math.max(1, Math.ceil(LEAST / longest));
    Object.assign(this.mask, { width: bitmap.width, height: bitmap.height });
    const size = { width: bitmap.width * this.enlarged, height: bitmap.height * this.enlarged };
    for (const canvas of [this.canvas, this.tint]) Object.assign(canvas, size);
    this.spot = { x: bitmap.width / 2, y: bitmap.height / 2 };
    Object.assign($("brush"), { min: Math.max(1, Math.round(longest / 100)), max: Math.round(longest / 2) });
    $("brush").value = Math.round(longest / 8);
    this.#erase(false);
    this.#replay();
    const dialog = $("mask-dialog");
    dialog.showModal();
    this.canvas.focus();
    return new Promise((resolve) => {
      const close = (result) => {
        dialog.removeEventListener("cancel", given);
        $("mask-cancel").onclick = $("mask-done").onclick = null;
        if (dialog.open) dialog.close();
        resolve(result);
      };
      const given = () => {
        this.strokes = before;
        close(undefined);
      };
      dialog.addEventListener("cancel", given);
      $("mask-cancel").onclick = given;
      $("mask-done").onclick = () => {
        this.#replay(); // edges that were painted in pieces are smooth in another way than in one
        close(this.#greys());
      };
    });
  }

  /** Black and white alone, unless it began with greys. */
  #greys() {
    const { width, height } = this.mask;
    const { data } = this.mask.getContext("2d").getImageData(0, 0, width, height);
    const isGrey = this.strokes.some((stroke) => stroke.isGrey);
    const values = new Uint8ClampedArray(width * height);
    for (let at = 0; at < values.length; at += 1) {
      const alpha = data[4 * at + 3];
      values[at] = isGrey ? alpha : 255 * (alpha > 127);
    }
    return values.some(Boolean) ? { width, height, values } : null;
  }

  #pointer() {
    const place = (event) => {
      const box = this.canvas.getBoundingClientRect();
      return { x: ((event.clientX - box.left) / box.width) * this.mask.width, y: ((event.clientY - box.top) / box.height) * this.mask.height };
    };
    this.canvas.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      this.canvas.setPointerCapture(event.pointerId);
      this.canvas.focus();
      this.stroke = this.#brushed([place(event)]);
      this.#add(this.stroke);
    });
    this.canvas.addEventListener("pointermove", (event) => {
      this.spot = place(event);
      if (this.stroke) {
        const from = this.stroke.points.length - 1;
        const told = event.getCoalescedEvents?.() ?? [];
        this.stroke.points.push(...(told.length ? told : [event]).map(place));
        this.#stroke(this.stroke, from);
      }
      this.#draw();
    });
    for (const end of ["pointerup", "pointercancel"]) {
      this.canvas.addEventListener(end, () => {
        this.stroke = null;
      });
    }
  }

  #key(event) {
    const by = Number($("brush").value) / 4;
    const moves = { ArrowLeft: [-by, 0], ArrowRight: [by, 0], ArrowUp: [0, -by], ArrowDown: [0, by] };
    const move = moves[event.key];
    if (move) {
      this.spot.x = Math.min(this.mask.width, Math.max(0, this.spot.x + move[0]));
      this.spot.y = Math.min(this.mask.height, Math.max(0, this.spot.y + move[1]));
      this.#draw();
    } else if (event.key === " ") this.#add(this.#brushed([{ ...this.spot }]));
    else if (event.key === "e" && !event.ctrlKey) this.#erase(!this.isErasing);
    else if (event.key === "z" && (event.ctrlKey || event.metaKey)) this.#undo();
    else if (event.key === "[" || event.key === "]") {
      $("brush").value = Number($("brush").value) * (event.key === "]" ? 1.25 : 0.8);
      this.#draw();
    } else return;
    event.preventDefault();
  }

  #brushed(points) {
    return { kind: this.isErasing ? "erase" : "paint", size: Number($("brush").value), points };
  }

  #erase(isErasing) {
    this.isErasing = isErasing;
    $("erase").setAttribute("aria-pressed", String(isErasing));
  }

  #add(stroke) {
    this.strokes.push(stroke);
    this.#apply(stroke);
    this.#draw();
  }

  #undo() {
    this.strokes.pop();
    this.#replay();
  }

  #replay() {
    this.mask.getContext("2d").clearRect(0, 0, this.mask.width, this.mask.height);
    for (const stroke of this.strokes) this.#apply(stroke);
    this.#draw();
  }

  #apply(stroke) {
    const { width, height } = this.mask;
    const context = this.mask.getContext("2d");
    if (stroke.kind === "clear") context.clearRect(0, 0, width, height);
    else if (stroke.kind === "mask") context.drawImage(stroke.canvas, 0, 0);
    else if (stroke.kind === "invert") {
      context.globalCompositeOperation = "xor";
      context.fillStyle = COLOUR;
      context.fillRect(0, 0, width, height);
      context.globalCompositeOperation = "source-over";
    } else this.#stroke(stroke, 0);
  }

  #stroke({ kind, size, points }, from) {
    const context = this.mask.getContext("2d");
    context.globalCompositeOperation = kind === "erase" ? "destination-out" : "source-over";
    Object.assign(context, { lineCap: "round", lineJoin: "round", lineWidth: size, strokeStyle: COLOUR, fillStyle: COLOUR });
    context.beginPath();
    context.arc(points[from].x, points[from].y, size / 2, 0, 2 * Math.PI);
    context.fill();
    context.beginPath();
    context.moveTo(points[from].x, points[from].y);
    for (const point of points.slice(from + 1)) context.lineTo(point.x, point.y);
    context.stroke();
    context.globalCompositeOperation = "source-over";
  }

  /** Stripes, which are told from a picture of any colour. */
  #stripes() {
    const tile = Object.assign(document.createElement("canvas"), { width: 24, height: 24 });
    const context = tile.getContext("2d");
    context.fillStyle = COLOUR;
    context.fillRect(0, 0, 24, 24);
    Object.assign(context, { strokeStyle: "#ffffff", lineWidth: 5 });
    for (const at of [-24, 0, 24]) {
      context.beginPath();
      context.moveTo(at - 6, 30);
      context.lineTo(at + 30, -6);
      context.stroke();
    }
    return tile;
  }

  #draw() {
    if (!this.bitmap) return;
    const { width, height } = this.canvas;
    const tint = this.tint.getContext("2d");
    tint.clearRect(0, 0, width, height);
    tint.drawImage(this.mask, 0, 0, width, height);
    tint.globalCompositeOperation = "source-in";
    this.stripes ??= this.#stripes();
    tint.fillStyle = tint.createPattern(this.stripes, "repeat");
    tint.fillRect(0, 0, width, height);
    tint.globalCompositeOperation = "source-over";
    const context = this.canvas.getContext("2d");
    context.drawImage(this.bitmap, 0, 0, width, height);
    context.globalAlpha = 0.6;
    context.drawImage(this.tint, 0, 0);
    context.globalAlpha = 1;
    const thin = width / Math.max(1, this.canvas.getBoundingClientRect().width);
    for (const [colour, line] of [["#000000", 3], ["#ffffff", 1.4]]) {
      Object.assign(context, { lineWidth: line * thin, strokeStyle: colour });
      context.beginPath();
      context.arc(this.spot.x * this.enlarged, this.spot.y * this.enlarged, (Number($("brush").value) * this.enlarged) / 2, 0, 2 * Math.PI);
      context.stroke();
    }
  }
}
