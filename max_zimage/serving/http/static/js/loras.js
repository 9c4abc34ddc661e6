// Adapters of the server's folder, each with a weight; the part is hidden where the server has none.

import { $, el } from "./dom.js";

export class Loras {
  constructor({ loras }) {
    this.chosen = [];
    $("loras-section").hidden = loras.length === 0;
    $("lora-names").append(...loras.map((name) => el("option", { value: name }, name.replace(/\.safetensors$/, ""))));
    $("lora-add").addEventListener("click", () => {
      this.set([...this.chosen.filter((each) => each.name !== $("lora-names").value), { name: $("lora-names").value, scale: 1 }]);
    });
  }

  values() {
    return this.chosen.length ? { loras: this.chosen.map(({ name, scale }) => ({ name, scale })) } : {};
  }

  set(loras) {
    this.chosen = loras.map((each) => ({ ...each }));
    $("loras").replaceChildren(...this.chosen.map((each) => this.#row(each)));
  }

  #row(lora) {
    const named = lora.name.replace(/\.safetensors$/, "");
    const weight = el("input", { type: "number", step: "0.05", placeholder: "1", value: lora.scale, "aria-label": `Weight of ${named}` });
    weight.addEventListener("input", () => {
      lora.scale = weight.value === "" ? 1 : Number(weight.value);
    });
    const remove = el("button", { type: "button", className: "icon", "aria-label": `Remove ${named}`, title: "Remove" }, "×");
    remove.addEventListener("click", () => {
      this.set(this.chosen.filter((each) => each !== lora));
      $("lora-names").focus();
    });
    return el("li", {}, el("span", {}, named), weight, remove);
  }
}
