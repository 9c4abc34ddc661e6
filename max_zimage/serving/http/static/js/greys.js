// Masks as brightness: 255 is drawn anew, 0 is kept. What is said here holds for painted masks and for files.

const BOXES = 3;

/** Brightness of an image in a size; where it has transparent pixels these are what is drawn anew. */
export function greysOf(bitmap, width, height) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  Object.assign(context, { imageSmoothingQuality: "high" });
  context.drawImage(bitmap, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  const values = new Uint8ClampedArray(width * height);
  let isTransparent = false;
  for (let at = 3; at < data.length; at += 4) isTransparent ||= data[at] < 255;
  for (let at = 0; at < values.length; at += 1) {
    const pixel = 4 * at;
    // The weights of Pillow's mode L, by which the server reads a mask in colours.
    const brightness = (19595 * data[pixel] + 38470 * data[pixel + 1] + 7471 * data[pixel + 2] + 32768) >> 16;
    values[at] = isTransparent ? 255 - data[pixel + 3] : brightness;
  }
  return { width, height, values, isTransparent };
}

/** Whether anything between black and white is in there. */
export function hasGreys({ values }) {
  return values.some((value) => value > 0 && value < 255);
}

/** Whether nothing is to be drawn anew. */
export function isBlack({ values }) {
  return !values.some(Boolean);
}

/** As a picture, in black and white and greys. */
export function pictureOf({ width, height, values }) {
  return canvasOf({ width, height }, (data, at) => {
    data.fill(values[at], 4 * at, 4 * at + 3);
    data[4 * at + 3] = 255;
  });
}

/** As paint of a colour, the denser the whiter. */
export function paintOf({ width, height, values }, [red, green, blue]) {
  return canvasOf({ width, height }, (data, at) => data.set([red, green, blue, values[at]], 4 * at));
}

/** With soft edges.
 *
 * A Gaussian blur with this standard deviation, as three extended box blurs, which take the same time for any of them;
 * what lies outside is as the edge. Reference: Gwosdek et al., Theoretical foundations of Gaussian convolution by
 * extended box filtering, 2011.
 */
export function feathered(greys, deviation) {
  if (!deviation) return greys;
  const { width, height } = greys;
  const box = boxOf(deviation);
  let values = Float32Array.from(greys.values);
  for (let pass = 0; pass < BOXES; pass += 1) values = boxed(values, width, height, 1, width, box);
  for (let pass = 0; pass < BOXES; pass += 1) values = boxed(values, height, width, width, 1, box);
  return { width, height, values: Uint8ClampedArray.from(values) };
}

/** Whole pixels on either side, and the share of one more, of a box whose variance is a third. */
function boxOf(deviation) {
  const variance = deviation ** 2 / BOXES;
  const whole = Math.floor((Math.sqrt(12 * variance + 1) - 1) / 2);
  const share = ((2 * whole + 1) * (whole * (whole + 1) - 3 * variance)) / (6 * (variance - (whole + 1) ** 2));
  return { whole, share };
}

/** One box blur along lines: `length` values `step` apart, in `lines` lines `next` apart. */
function boxed(values, length, lines, step, next, { whole, share }) {
  const made = new Float32Array(values.length);
  const size = 2 * whole + 1 + 2 * share;
  for (let line = 0; line < lines; line += 1) {
    const value = (at) => values[line * next + Math.min(length - 1, Math.max(0, at)) * step];
    let sum = 0;
    for (let at = -whole; at <= whole; at += 1) sum += value(at);
    for (let at = 0; at < length; at += 1) {
      made[line * next + at * step] = (sum + share * (value(at - whole - 1) + value(at + whole + 1))) / size;
      sum += value(at + whole + 1) - value(at - whole);
    }
  }
  return made;
}

function canvasOf({ width, height }, put) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let at = 0; at < width * height; at += 1) put(image.data, at);
  context.putImageData(image, 0, 0);
  return canvas;
}
