// The large view of one image: photograph, mask and facts.
"use strict";

let maskImage = null; // the loaded mask of the shown image

async function enlarge(index) {
  shown = index;
  const { image_id, uri, kind } = images[index];
  if (!$("large").open) $("large").showModal();
  $("title").textContent = `Image ${image_id.toLocaleString("en")}`;
  $("uri").textContent = uri;
  $("original").href = `originals/${image_id}`;
  const isWeb = /^https?:\/\//i.test(uri);
  $("web").hidden = !isWeb;
  if (isWeb) $("web").href = uri;
  else $("web").removeAttribute("href");
  $("previous").disabled = index === 0;
  $("mark").checked = marked.has(image_id);
  $("why").hidden = true;
  $("classes").hidden = true;
  $("values").replaceChildren();
  maskImage = null;
  paint();
  const answer = ask(`images/${image_id}`);
  $("photo").removeAttribute("src"); // or the previous image stays until this one has loaded
  $("photo").src = `pictures/large/${image_id}/photo`;
  if (kind === "ok" && run.masks) {
    const mask = new Image();
    mask.addEventListener("load", () => {
      if (shown !== index) return;
      maskImage = mask;
      paint();
    });
    mask.src = `pictures/large/${image_id}/mask`;
  }
  try {
    const facts = await answer;
    if (shown === index) describe(facts);
  } catch (error) {
    if (shown === index) why(error.message);
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
    const row = element("tr", {}, element("td", {}, swatch(c.color), c.name),
      element("td", { textContent: percent(of("coverage", c)) }),
      element("td", { textContent: percent(of("confidence", c)) }));
    row.addEventListener("mouseenter", () => paint(c.color));
    row.addEventListener("mouseleave", () => paint());
    return row;
  }));
  const others = run.measures.filter((m) => ["uncertainty", "formulas"].includes(m.group));
  const pairs = [
    ...others.filter((m) => facts.measures[m.name] !== null).map((m) => [m.label, format(m, facts.measures[m.name])]),
    ...(facts.width ? [["size", `${facts.width} × ${facts.height}`]] : []),
    ...Object.entries(facts.columns).map(([name, value]) => [name, value ?? "–"]),
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
  if (shown + by >= images.length) await more();
  const index = shown + by;
  if (index >= 0 && index < images.length) enlarge(index);
}

function setOpacity(share) {
  document.documentElement.style.setProperty("--opacity", share / 100);
  $("opacity").value = $("large-opacity").value = share;
}
