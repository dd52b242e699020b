// The large view of one image: its pictures and facts.
"use strict";

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
  const answer = ask(`images/${image_id}`);
  clearSides(image);
  if (kind === "ok") loadMask(mine(), `pictures/large/${image_id}/mask`, image);
  try {
    const facts = await answer;
    if (shown !== image) return;
    const { other_id } = facts;
    const other = other_id === null ? null : await ask(`other/images/${other_id}`);
    if (shown !== image) return;
    describe(facts, other);
    if (other?.status === "ok") loadMask(others(), `other/pictures/large/${other_id}/mask`, image);
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

function describe(facts, other) {
  if (facts.status !== "ok") why(`${facts.error}: ${facts.message ?? ""}`);
  else if (run.against && !other) why(`${run.against.name} does not have this image`);
  else if (other && other.status !== "ok") why(`in ${run.against.name}: ${other.error}: ${other.message ?? ""}`);
  showClasses(facts, other);
  const known = run.measures.filter(({ name, group }) =>
    ["uncertainty", "formulas", "change"].includes(group) && facts.measures[name] !== null);
  const pairs = [
    ...Object.entries(facts.columns).map(([name, value]) => [name, value ?? "–"]),
    ...known.map(({ name, group, label }) => [label, format(group, facts.measures[name])]),
    ...(facts.width ? [["size", `${facts.width} × ${facts.height}`]] : []),
  ];
  $("values").replaceChildren(...pairs.flatMap(([name, value]) =>
    [element("dt", { textContent: name }), element("dd", { textContent: value })]));
}

// The classes of the image with their shares; next to another run, those of both and the change.
function showClasses(facts, other) {
  const share = (of, { field }) => of?.measures[`coverage.${field}`] ?? null;
  const known = new Set(run.classes.map(({ field }) => field));
  const all = [...run.classes, ...(run.against?.classes ?? []).filter(({ field }) => !known.has(field))];
  const largest = (c) => Math.max(share(facts, c), share(other, c));
  const present = all.filter((c) => largest(c) > 0).sort((a, b) => largest(b) - largest(a));
  const points = (c) => {
    const change = 100 * (share(facts, c) - share(other, c));
    return Math.abs(change) < 0.05 ? "0" : `${change > 0 ? "+" : "−"}${Math.abs(change).toFixed(1)}`;
  };
  const columns = run.against ? [
    [run.against.name, (c) => percent(share(other, c))],
    [run.name, (c) => percent(share(facts, c))],
    ["change", (c) => other ? points(c) : "–"],
  ] : [
    ["share", (c) => percent(share(facts, c))],
    ["confidence", (c) => percent(facts.measures[`confidence.${c.field}`])],
  ];
  $("classes").hidden = !present.length;
  $("classes").tHead.replaceChildren(element("tr", {}, element("th", { textContent: "class" }),
    ...columns.map(([title]) => element("th", { textContent: title, title }))));
  $("classes").tBodies[0].replaceChildren(...present.map((c) => {
    const row = element("tr", { tabIndex: 0 }, element("td", {}, swatch(c.color), c.name),
      ...columns.map(([, text]) => element("td", { textContent: text(c) })));
    for (const come of ["mouseenter", "focus"]) row.addEventListener(come, () => paint(c.field));
    for (const go of ["mouseleave", "blur"]) row.addEventListener(go, () => paint());
    return row;
  }));
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
