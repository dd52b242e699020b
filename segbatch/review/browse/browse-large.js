// The large view of one image: photograph, mask and facts.
"use strict";

let maskImage = null; // the loaded mask of the shown image
const indexOf = (image) => images.findIndex(({ image_id }) => image_id === image.image_id);

async function enlarge(image) {
  const isStep = !$("large").open;
  shown = image;
  const { image_id, uri, kind } = image;
  const index = indexOf(image);
  if (isStep) $("large").showModal();
  fit();
  saveAddress({ isStep });
  $("title").textContent = baseName(uri);
  $("place").textContent = `image_id ${image_id}${index < 0 ? ", not among the images of these filters" : ""}`;
  $("uri").textContent = uri;
  $("original").href = `originals/${image_id}`;
  const isWeb = /^https?:\/\//i.test(uri);
  $("web").hidden = !isWeb;
  if (isWeb) $("web").href = uri;
  else $("web").removeAttribute("href");
  $("previous").disabled = index <= 0;
  $("next").disabled = index < 0 || (atEnd && index === images.length - 1);
  $("mark").checked = marked.has(image_id);
  $("why").hidden = true;
  $("classes").hidden = true;
  $("values").replaceChildren();
  maskImage = null;
  paint();
  const answer = ask(`images/${image_id}`);
  $("photo").removeAttribute("src"); // or the previous image stays until this one has loaded
  $("photo").alt = `photograph ${baseName(uri)}`;
  $("photo").src = `pictures/large/${image_id}/photo`;
  if (kind === "ok" && run.masks) {
    const mask = new Image();
    mask.addEventListener("load", () => {
      if (shown !== image) return;
      maskImage = mask;
      paint();
    });
    mask.src = `pictures/large/${image_id}/mask`;
  }
  try {
    const facts = await answer;
    if (shown === image) describe(facts);
  } catch (error) {
    if (shown === image) why(error.message);
  }
}

// Opens an image that need not be in the grid.
async function enlargeById(image_id) {
  const inGrid = images.find((image) => image.image_id === image_id);
  if (inGrid) { await enlarge(inGrid); return; }
  try {
    const { uri, status, error } = await ask(`images/${image_id}`);
    await enlarge({ image_id, uri, kind: error ?? status });
  } catch (error) {
    showError(error);
  }
}

function why(text) {
  $("why").hidden = false;
  $("why").textContent = text;
}

function describe(facts) {
  if (facts.status !== "ok") why(`${facts.error}: ${facts.message ?? ""}`);
  const of = (group, c) => facts.measures[`${group}.${c.field}`];
  const present = run.classes.filter((c) => of("coverage", c) > 0);
  present.sort((a, b) => of("coverage", b) - of("coverage", a));
  $("classes").hidden = !present.length;
  $("classes").tBodies[0].replaceChildren(...present.map((c) => {
    const row = element("tr", { tabIndex: 0 }, element("td", {}, swatch(c.color), c.name),
      element("td", { textContent: percent(of("coverage", c)) }),
      element("td", { textContent: percent(of("confidence", c)) }));
    for (const come of ["mouseenter", "focus"]) row.addEventListener(come, () => paint(c.color));
    for (const go of ["mouseleave", "blur"]) row.addEventListener(go, () => paint());
    return row;
  }));
  const others = run.measures.filter((m) => ["uncertainty", "formulas"].includes(m.group));
  const pairs = [
    ...Object.entries(facts.columns).map(([name, value]) => [name, value ?? "–"]),
    ...others.filter((m) => facts.measures[m.name] !== null).map((m) => [m.label, format(m.group, facts.measures[m.name])]),
    ...(facts.width ? [["size", `${facts.width} × ${facts.height}`]] : []),
  ];
  $("values").replaceChildren(...pairs.flatMap(([name, value]) =>
    [element("dt", { textContent: name }), element("dd", { textContent: value })]));
}

// Paints the mask, or only the class with one colour.
function paint(only) {
  const canvas = $("mask");
  canvas.hidden = !maskImage;
  if (!maskImage) return;
  canvas.width = maskImage.naturalWidth;
  canvas.height = maskImage.naturalHeight;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(maskImage, 0, 0);
  if (!only) return;
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(only.slice(at, at + 2), 16));
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  const data = pixels.data;
  for (let at = 0; at < data.length; at += 4) {
    if (data[at] !== red || data[at + 1] !== green || data[at + 2] !== blue) data[at + 3] = 0;
  }
  context.putImageData(pixels, 0, 0);
}

async function step(by) {
  const index = indexOf(shown);
  if (index < 0) return;
  if (index + by >= images.length) await more();
  const next = images[index + by];
  if (next && shown) enlarge(next);
}

// Closing takes back the step that opening was, and the focus goes to the image last seen.
function closed() {
  const index = indexOf(shown);
  shown = null;
  touching.clear();
  if (history.state?.opened && new URLSearchParams(location.hash.slice(1)).has("image")) history.back();
  else saveAddress();
  const tile = index < 0 ? null : tileAt(index);
  tile?.focus({ preventScroll: true });
  tile?.scrollIntoView({ block: "nearest" });
  loadPictures();
}

function listenLarge() {
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  $("close").addEventListener("click", () => $("large").close());
  $("large").addEventListener("close", closed);
  $("copy").addEventListener("click", async () => {
    getSelection().selectAllChildren($("uri"));
    // Browsers give the clipboard to localhost and https only; elsewhere the text stays selected.
    await navigator.clipboard?.writeText(shown.uri);
    $("copy").textContent = navigator.clipboard ? "Copied" : "Selected: press Ctrl-C";
    setTimeout(() => { $("copy").textContent = "Copy URI"; }, 1500);
  });
  $("mark").addEventListener("change", () => mark(shown.image_id, shown.uri, $("mark").checked));
  document.addEventListener("keydown", (event) => {
    if (!shown || event.target.type === "range" || event.ctrlKey || event.metaKey || event.altKey) return;
    const act = {
      ArrowLeft: () => step(-1), ArrowRight: () => step(1), m: () => $("mark").click(),
      "+": () => zoomBy(1.5), "=": () => zoomBy(1.5), "-": () => zoomBy(1 / 1.5), 0: fit,
    }[event.key];
    if (!act) return;
    act();
    event.preventDefault();
  });
  listenZoom();
}
