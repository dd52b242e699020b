// The pictures of the large view: the photograph under the mask of this run and, next to it, of the
// run that it is compared with.
"use strict";

const sides = []; // {run, photo, canvas, mask}: the mask is a loaded image, or null

function makeSides() {
  const first = document.querySelector("#large .side");
  const caption = first.querySelector("figcaption");
  sides.push({ run, photo: $("photo"), canvas: $("mask"), mask: null, caption });
  if (run.against) {
    const side = first.cloneNode(true);
    for (const part of side.querySelectorAll("[id]")) part.removeAttribute("id");
    const [photo, canvas, name] = ["img", "canvas", "figcaption"].map((tag) => side.querySelector(tag));
    sides.unshift({ run: run.against, photo, canvas, mask: null, caption: name }); // on the left
    first.before(side);
    $("only-changes").hidden = !(run.masks && run.against.masks);
    const isSame = run.name === run.against.name;
    for (const side of sides) {
      side.caption.textContent = isSame ? side.run.uri : side.run.name;
      side.caption.title = side.run.uri;
      side.caption.hidden = false;
    }
  }
  $("changes").addEventListener("change", () => paint());
}

const mine = () => sides.find((side) => side.run === run);
const others = () => sides.find((side) => side.run !== run);

function clearSides(image) {
  for (const side of sides) {
    side.mask = null;
    side.photo.removeAttribute("src"); // or the previous image stays until this one has loaded
    side.photo.alt = `photograph ${baseName(image.uri)}`;
    side.photo.src = `pictures/large/${image.image_id}/photo`;
  }
  paint();
}

function loadMask(side, source, image) {
  if (!side.run.masks) return;
  const mask = new Image();
  mask.addEventListener("load", () => {
    if (shown !== image) return;
    side.mask = mask;
    paint();
  });
  mask.src = source;
}

// Paints the masks, or of them only the class of a field, or only what differs between the runs.
function paint(field = null) {
  const drawn = sides.filter((side) => {
    side.canvas.hidden = !side.mask;
    return side.mask;
  }).map((side) => ({ ...side, ...pixelsOf(side) }));
  if ($("changes").checked && drawn.length === 2) keepChanges(...drawn);
  for (const { fields, pixels, context } of drawn) {
    const { data } = pixels;
    for (let at = 0; field !== null && at < data.length; at += 4) {
      if (fields.get(rgbAt(data, at)) !== field) data[at + 3] = 0;
    }
    context.putImageData(pixels, 0, 0);
  }
}

const rgbAt = (data, at) => (data[at] << 16) | (data[at + 1] << 8) | data[at + 2];

function pixelsOf({ canvas, mask, run: { classes } }) {
  canvas.width = mask.naturalWidth;
  canvas.height = mask.naturalHeight;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(mask, 0, 0);
  const fields = new Map(classes.map(({ color, field }) => [parseInt(color.slice(1), 16), field]));
  return { context, fields, pixels: context.getImageData(0, 0, canvas.width, canvas.height) };
}

function keepChanges(one, other) {
  const [a, b] = [one.pixels.data, other.pixels.data];
  if (a.length !== b.length) return;
  for (let at = 0; at < a.length; at += 4) {
    if (one.fields.get(rgbAt(a, at)) === other.fields.get(rgbAt(b, at))) a[at + 3] = b[at + 3] = 0;
  }
}
