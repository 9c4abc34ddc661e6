// Width and height: presets of the model's usual area in several shapes, and what fits the server's limits.

import { $, el } from "./dom.js";

const SHAPES = [
  ["Square", 1, 1],
  ["Photo", 3, 2],
  ["Upright", 2, 3],
  ["Wide", 16, 9],
  ["Phone", 9, 16],
];

export class Sizes {
  constructor(capabilities, onChange) {
    this.limits = capabilities.limits;
    this.step = this.limits.multiple_of;
    this.usual = capabilities.defaults.size.split("x").map(Number);
    this.inputs = [$("width"), $("height")];
    for (const [input, most] of [[this.inputs[0], this.limits.width], [this.inputs[1], this.limits.height]]) {
      Object.assign(input, { min: this.step, max: most, step: this.step });
      input.addEventListener("input", () => {
        this.show();
        onChange();
      });
    }
    $("swap").addEventListener("click", () => {
      this.set(this.inputs[1].value, this.inputs[0].value);
      onChange();
    });
    const presets = SHAPES.map(([name, across, upright]) => this.#preset(name, across, upright, onChange));
    $("presets").append(...presets);
    this.buttons = presets;
    this.set(...this.usual);
  }

  get size() {
    return this.inputs.map((input) => Number(input.value));
  }

  get text() {
    return `${this.inputs[0].value}x${this.inputs[1].value}`;
  }

  set(width, height) {
    [this.inputs[0].value, this.inputs[1].value] = [width, height];
    this.show();
  }

  /** The nearest size that can be drawn, smaller where the server has fewer pixels. */
  fitting(width, height) {
    const most = Math.min(1, Math.sqrt(this.limits.pixels / (width * height)), this.limits.width / width, this.limits.height / height);
    const round = (side) => Math.max(this.step, (most < 1 ? Math.floor : Math.round)((side * most) / this.step) * this.step);
    return [round(width), round(height)];
  }

  show() {
    const [width, height] = this.size;
    for (const button of this.buttons) button.setAttribute("aria-pressed", String(button.value === this.text));
    const pixels = width * height;
    const usual = this.usual[0] * this.usual[1];
    const said = pixels > this.limits.pixels ? `more than the ${this.limits.pixels.toLocaleString("en")} pixels that this server draws` : pixels === usual ? "the model's usual size" : `${(pixels / usual).toFixed(2)} of the model's usual area`;
    $("size-help").textContent = `A multiple of ${this.step} each; ${said}.`;
  }

  #preset(name, across, upright, onChange) {
    const side = Math.sqrt(this.usual[0] * this.usual[1]);
    const ratio = Math.sqrt(across / upright);
    const [width, height] = this.fitting(side * ratio, side / ratio);
    const shape = el("i", { className: "shape" });
    shape.style.aspectRatio = `${across} / ${upright}`;
    shape.style[across >= upright ? "width" : "height"] = "1.1rem";
    const button = el("button", { type: "button", className: "preset", value: `${width}x${height}`, title: `${width} × ${height}` }, shape, name);
    button.addEventListener("click", () => {
      this.set(width, height);
      onChange();
    });
    return button;
  }
}
