// A picture to start from, with what goes with it: strength, a mask, margins to draw around it; or one whose settings
// are read. Both are dropped, pasted or chosen.

import { ApiError, parametersOf } from "./api.js";
import { $, announce, dataUrl } from "./dom.js";
import { FieldError } from "./fields.js";
import { StartMask } from "./start_mask.js";

const SIDES = ["left", "top", "right", "bottom"];
const KINDS = ["image/png", "image/jpeg", "image/webp"];

export class Start {
  constructor(capabilities, sizes, showError) {
    Object.assign(this, { capabilities, sizes, showError, onSettings: () => {} });
    this.usualStrength = capabilities.defaults.strength;
    this.isTouched = false;
    this.applied = null;
    this.mask = new StartMask({ showError, onChange: () => this.#masked() });
    this.clear();
    $("start-file").addEventListener("change", (event) => this.#chosen(event.target, (file) => this.use(file)));
    $("read-file").addEventListener("change", (event) => this.#chosen(event.target, (file) => this.read(file)));
    $("mask-file").addEventListener("change", (event) => this.#chosen(event.target, (file) => this.mask.use(file)));
    $("start-clear").addEventListener("click", () => {
      this.clear();
      $("start-file").focus();
    });
    $("strength").addEventListener("input", (event) => {
      this.isTouched ||= event.isTrusted;
    });
    $("strength-range").addEventListener("input", () => {
      this.isTouched = true;
    });
    for (const side of SIDES) $(`out-${side}`).addEventListener("input", () => this.#fit());
    this.#drops();
    const { features } = capabilities;
    $("start-title").parentElement.hidden = !features.image_to_image;
    $("mask-open").hidden = $("drop-mask").hidden = !features.inpainting;
    $("outpaint-fields").hidden = !features.outpainting;
  }

  get isSet() {
    return this.picture !== null;
  }

  /** Start from a file. */
  async use(file) {
    let bitmap;
    try {
      bitmap = await createImageBitmap(file);
    } catch {
      this.showError("image: this file is no picture that the browser can show; a PNG, JPEG or WebP file is wanted", "image");
      return;
    }
    const soft = Boolean(this.applied?.soft_mask);
    if (this.applied) this.#forget(); // what goes with the picture has been said
    else this.clear();
    this.mask.soft(soft);
    this.picture = file;
    this.bitmap = bitmap;
    this.mask.of(bitmap);
    this.url = URL.createObjectURL(file);
    $("start-image").src = this.url;
    $("started").hidden = false;
    this.#strength();
    if (this.applied?.size) this.note();
    else this.#fit();
    announce("The picture is set as the start image.");
  }

  /** Read how a file was drawn, and put it into the form. */
  async read(file) {
    const said = $("read-said");
    try {
      const { request, left_out: left, needs, notes: told } = await parametersOf(await dataUrl(file));
      this.onSettings(request);
      const notes = [];
      if (needs.image_digest) notes.push("it was drawn from a start image, which no picture holds");
      if (needs.mask_digest) notes.push("and with a mask");
      if (left.enhanced_by) notes.push(`its prompt was written out by ${left.enhanced_by} from “${left.original_prompt ?? ""}”`);
      const others = Object.keys(left).filter((name) => !["original_prompt", "enhanced_by"].includes(name));
      if (others.length) notes.push(`left out, for the page has no field for it: ${others.join(", ")}`);
      notes.push(...told);
      said.textContent = `Settings of ${file.name || "the picture"} are in the form${notes.length ? `; ${notes.join("; ")}` : ""}.`;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      said.textContent = "";
      this.showError(error.message, "image");
    }
  }

  clear() {
    this.applied = null;
    this.isTouched = false;
    $("composite").checked = false;
    for (const side of SIDES) $(`out-${side}`).value = 0;
    this.#forget();
  }

  /** Forget the picture and its mask, and nothing else. */
  #forget() {
    if (this.url) URL.revokeObjectURL(this.url);
    Object.assign(this, { picture: null, bitmap: null, url: null });
    $("started").hidden = true;
    this.mask.forget();
  }

  /** Pictures as data URLs, and the other fields that go with them. */
  async values() {
    const margins = this.#margins();
    const mask = this.mask.values();
    const values = { strength: Number($("strength").value), ...mask.values };
    const pictures = { image: await dataUrl(this.picture), ...mask.pictures };
    if (margins) values.outpaint = margins;
    if ($("composite").checked) values.composite = true;
    const [width, height] = this.#whole(margins);
    if (this.sizes.text !== `${width}x${height}`) Object.assign(values, { size: this.sizes.text, resize: true });
    return { pictures, values };
  }

  /** What a body says of it; the picture itself is not in there. */
  apply(body) {
    if (body.strength !== undefined) {
      $("strength").value = body.strength;
      this.isTouched = true;
    }
    SIDES.forEach((side, at) => {
      $(`out-${side}`).value = body.outpaint?.[at] ?? 0;
    });
    $("composite").checked = Boolean(body.composite);
    this.mask.soft(Boolean(body.soft_mask));
    this.applied = body.strength === undefined ? null : body; // one that was drawn from a picture
    if (body.size === undefined) this.#fit();
    this.note();
  }

  /** What depends on other fields. */
  note() {
    if (!this.isSet) return;
    const [width, height] = this.#whole(this.#margins());
    const asIs = this.sizes.text === `${width}x${height}`;
    $("start-facts").textContent = `${this.bitmap.width} × ${this.bitmap.height} pixels${asIs ? "" : `, resized to ${this.sizes.text.replace("x", " × ")}`}`;
    $("composite-field").hidden = !this.mask.isSet && !this.#margins();
  }

  #margins() {
    const found = SIDES.map((side) => Number($(`out-${side}`).value));
    if (found.some((each) => !Number.isInteger(each) || each < 0)) throw new FieldError("outpaint", "margins must be whole numbers from 0");
    return found.some(Boolean) ? found : null;
  }

  #whole(margins) {
    const [left, top, right, bottom] = margins ?? [0, 0, 0, 0];
    return [this.bitmap.width + left + right, this.bitmap.height + top + bottom];
  }

  #fit() {
    if (!this.isSet) return;
    try {
      this.sizes.set(...this.sizes.fitting(...this.#whole(this.#margins())));
    } catch {
      return; // it is said when it is sent
    }
    this.#strength();
    this.note();
  }

  /** The engine's own: all the way where a part is drawn anew. */
  #strength() {
    if (this.isTouched) return;
    const part = this.mask.isSet || SIDES.some((side) => Number($(`out-${side}`).value) > 0);
    $("strength").value = part ? 1 : this.usualStrength;
    $("strength").dispatchEvent(new Event("input"));
  }

  /** The mask is another one. */
  #masked() {
    if (!this.isSet) return;
    this.#strength();
    this.note();
  }

  #chosen(input, use) {
    const [file] = input.files;
    input.value = ""; // so that the same file can be chosen again
    if (file) use(file);
  }

  #drops() {
    const ways = [["drop-start", (file) => this.use(file)], ["drop-read", (file) => this.read(file)], ["drop-mask", (file) => this.mask.use(file)]];
    for (const [id, use] of ways) {
      const zone = $(id);
      zone.addEventListener("dragover", (event) => {
        event.preventDefault();
        zone.classList.add("over");
      });
      zone.addEventListener("dragleave", () => zone.classList.remove("over"));
      zone.addEventListener("drop", (event) => {
        event.preventDefault();
        zone.classList.remove("over");
        const [file] = event.dataTransfer.files;
        if (file) use(file);
      });
    }
    const isDragged = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
    document.addEventListener("dragenter", (event) => document.body.classList.toggle("dragged", isDragged(event)));
    document.addEventListener("dragover", (event) => isDragged(event) && event.preventDefault());
    document.addEventListener("drop", (event) => {
      if (isDragged(event)) event.preventDefault(); // beside the zones: the browser would leave the page for the file
      document.body.classList.remove("dragged");
    });
    document.addEventListener("paste", (event) => {
      const file = [...(event.clipboardData?.files ?? [])].find((each) => KINDS.includes(each.type));
      if (file) this.use(file);
    });
  }
}
