// The mask of the start image: painted, dropped or chosen, with a soft edge or without.

import { $ } from "./dom.js";
import { FieldError } from "./fields.js";
import { feathered, greysOf, hasGreys, isBlack, pictureOf } from "./greys.js";
import { MaskEditor } from "./mask.js";

export class StartMask {
  constructor({ onChange, showError }) {
    Object.assign(this, { onChange, showError, editor: new MaskEditor(), greys: null, isTold: false });
    $("mask-open").addEventListener("click", () => this.#paint());
    $("mask-clear").addEventListener("click", () => {
      this.forget();
      this.onChange();
      $("mask-open").focus();
    });
    $("soft_mask").addEventListener("change", () => {
      this.isTold = true;
    });
    $("feather").addEventListener("input", () => {
      this.#soften();
      cancelAnimationFrame(this.frame);
      this.frame = requestAnimationFrame(() => this.#show());
    });
  }

  get isSet() {
    return this.greys !== null;
  }

  /** The start image that it is for; without one there is no mask. */
  of(bitmap) {
    this.bitmap = bitmap;
  }

  /** Forget it, and how soft it was. */
  forget() {
    this.isTold = false;
    $("soft_mask").checked = false;
    $("feather").value = 0;
    $("feather").dispatchEvent(new Event("input"));
    $("mask-said").textContent = "";
    this.editor.forget();
    this.#set(null);
  }

  /** Take a file as the mask. */
  async use(file) {
    let bitmap;
    try {
      // Brightness as the file has it: colours that a profile moves are no mask.
      bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
    } catch {
      this.showError("mask: this file is no picture that the browser can show; a PNG, JPEG or WebP file is wanted", "mask_image");
      return;
    }
    const { width, height } = this.bitmap;
    const greys = greysOf(bitmap, width, height);
    if (isBlack(greys)) {
      const rule = greys.isTransparent ? "what is transparent is drawn anew" : "white is drawn anew";
      this.showError(`mask: nothing of ${file.name || "the picture"} would be drawn anew: ${rule}, and there is none`, "mask_image");
      return;
    }
    $("mask_image-error").hidden = true;
    const isAsLarge = bitmap.width === width && bitmap.height === height;
    const notes = [`Mask: ${file.name || "the picture"}`];
    if (!isAsLarge) notes.push(`resized from ${bitmap.width} × ${bitmap.height} to ${width} × ${height}`);
    if (greys.isTransparent) notes.push("it has transparent pixels, and those are drawn anew");
    $("mask-said").textContent = `${notes.join("; ")}.`;
    this.editor.begin(greys);
    this.#set(greys);
    this.onChange();
  }

  /** Whether greys count, as a body says it. */
  soft(isSoft) {
    this.isTold = isSoft;
    $("soft_mask").checked = isSoft;
    this.#soften();
  }

  /** The picture as a data URL, and the field that goes with it. */
  values() {
    if (!this.isSet) return { pictures: {}, values: {} };
    const mask_image = pictureOf(feathered(this.greys, this.#deviation())).toDataURL("image/png");
    return { pictures: { mask_image }, values: $("soft_mask").checked ? { soft_mask: true } : {} };
  }

  #deviation() {
    const text = $("feather").value.trim();
    const value = text === "" ? NaN : Number(text);
    const { max } = $("feather");
    if (!(value >= 0 && value <= Number(max))) throw new FieldError("feather", `the soft edge must be from 0 to ${max} pixels, got ${text || "nothing"}`);
    return value;
  }

  #set(greys) {
    this.greys = greys;
    this.isGrey = greys !== null && hasGreys(greys);
    $("mask-fields").hidden = $("mask-clear").hidden = greys === null;
    $("mask-open").textContent = greys ? "Paint the mask" : "Paint a mask";
    this.#soften();
    this.#show();
  }

  /** Show it as it would be sent. */
  #show() {
    const image = $("start-mask");
    image.hidden = !this.isSet;
    if (!this.isSet) return;
    try {
      image.src = pictureOf(feathered(this.greys, this.#deviation())).toDataURL("image/png");
    } catch (error) {
      if (!(error instanceof FieldError)) throw error; // it is said when it is sent
    }
  }

  /** Greys count where there are any, unless its user says otherwise. */
  #soften() {
    if (!this.isTold) $("soft_mask").checked = this.isSet && (this.isGrey || Number($("feather").value) > 0);
  }

  async #paint() {
    const painted = await this.editor.edit(this.bitmap);
    $("mask-open").focus();
    if (painted === undefined) return;
    if (painted === null) this.forget();
    else this.#set(painted);
    this.onChange();
  }
}
