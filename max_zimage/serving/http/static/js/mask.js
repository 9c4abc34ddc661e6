// A mask is painted over the start image, in its own pixels: white is drawn anew, black is kept.

import { $ } from "./dom.js";

const TINT = "#e4572e";

export class MaskEditor {
  constructor() {
    this.canvas = $("mask-canvas");
    this.strokes = [];
    this.mask = document.createElement("canvas");
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

  /** Paint over an image; a canvas in black and white, null for an empty mask, undefined if it was given up. */
  edit(bitmap) {
    const before = [...this.strokes];
    this.bitmap = bitmap;
    for (const canvas of [this.canvas, this.mask]) Object.assign(canvas, { width: bitmap.width, height: bitmap.height });
    this.spot = { x: bitmap.width / 2, y: bitmap.height / 2 };
    const longest = Math.max(bitmap.width, bitmap.height);
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
      $("mask-done").onclick = () => close(this.#blackAndWhite());
    });
  }

  #blackAndWhite() {
    const { width, height } = this.mask;
    const painted = this.mask.getContext("2d").getImageData(0, 0, width, height);
    let isEmpty = true;
    for (let at = 0; at < painted.data.length; at += 4) {
      const value = painted.data[at + 3] > 127 ? 255 : 0;
      if (value) isEmpty = false;
      painted.data.fill(value, at, at + 3);
      painted.data[at + 3] = 255;
    }
    if (isEmpty) return null;
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    canvas.getContext("2d").putImageData(painted, 0, 0);
    return canvas;
  }

  #pointer() {
    const place = (event) => {
      const box = this.canvas.getBoundingClientRect();
      return { x: ((event.clientX - box.left) / box.width) * this.canvas.width, y: ((event.clientY - box.top) / box.height) * this.canvas.height };
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
      this.spot.x = Math.min(this.canvas.width, Math.max(0, this.spot.x + move[0]));
      this.spot.y = Math.min(this.canvas.height, Math.max(0, this.spot.y + move[1]));
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
    else if (stroke.kind === "invert") {
      context.globalCompositeOperation = "xor";
      context.fillStyle = TINT;
      context.fillRect(0, 0, width, height);
      context.globalCompositeOperation = "source-over";
    } else this.#stroke(stroke, 0);
  }

  #stroke({ kind, size, points }, from) {
    const context = this.mask.getContext("2d");
    context.globalCompositeOperation = kind === "erase" ? "destination-out" : "source-over";
    Object.assign(context, { lineCap: "round", lineJoin: "round", lineWidth: size, strokeStyle: TINT, fillStyle: TINT });
    context.beginPath();
    context.arc(points[from].x, points[from].y, size / 2, 0, 2 * Math.PI);
    context.fill();
    context.beginPath();
    context.moveTo(points[from].x, points[from].y);
    for (const point of points.slice(from + 1)) context.lineTo(point.x, point.y);
    context.stroke();
    context.globalCompositeOperation = "source-over";
  }

  #draw() {
    if (!this.bitmap) return;
    const context = this.canvas.getContext("2d");
    context.drawImage(this.bitmap, 0, 0);
    context.globalAlpha = 0.6;
    context.drawImage(this.mask, 0, 0);
    context.globalAlpha = 1;
    const thin = this.canvas.width / Math.max(1, this.canvas.getBoundingClientRect().width);
    for (const [colour, width] of [["#000000", 3], ["#ffffff", 1.4]]) {
      Object.assign(context, { lineWidth: width * thin, strokeStyle: colour });
      context.beginPath();
      context.arc(this.spot.x, this.spot.y, Number($("brush").value) / 2, 0, 2 * Math.PI);
      context.stroke();
    }
  }
}
