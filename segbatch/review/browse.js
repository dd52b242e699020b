// The page of a run. Whatever the run holds (URIs, names, columns) is hostile text: it is put into
// the page as text content and in no other way.
"use strict";

const $ = (id) => document.getElementById(id);
const AHEAD = "1500px"; // pictures are there before they are scrolled to
const PAUSE_MS = 200; // of a slider, before it is asked for
// Tiles whose two pictures are asked for at a time. A browser has six connections, and one that
// waits for slow storage keeps its own: what was clicked must find a free one.
const MAX_LOADING = 2;

let run; // what /run says
let wanted = {}; // what /images is asked for
let images = []; // of the pages so far
let atEnd = false;
let loading = null; // the promise of the page that is on its way
let generation = 0; // answers to an older question are thrown away
let shown = -1; // index of the large image
const marked = new Map(); // image_id → uri; kept here, the server writes nothing
const controls = []; // each {write(wanted), reset()}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const percent = (value) => value === null || value === undefined ? "–" : `${(100 * value).toFixed(1)} %`;
const number = (value) => value === null || value === undefined ? "–" : String(+value.toPrecision(4));
const format = (measure, value) =>
  ["formulas", "columns"].includes(measure?.group) ? number(value) : percent(value);

function swatch(color) {
  const made = element("span", { className: "swatch" });
  made.style.background = color;
  return made;
}

async function ask(path, parameters) {
  const query = parameters ? `?${new URLSearchParams({ wanted: JSON.stringify(parameters) })}` : "";
  const answer = await fetch(path + query, { headers: { Accept: "application/json" } });
  const text = await answer.text();
  let told;
  try {
    told = JSON.parse(text);
  } catch {
    throw new Error(text || answer.statusText);
  }
  if (!answer.ok) throw new Error(told.error);
  return told;
}

function tell(error) {
  $("error").hidden = !error;
  $("error").textContent = error ? error.message : "";
}

// ------------------------------------------------------------------------------------- the filters

function fieldset(title, ...children) {
  const made = element("fieldset", {}, element("legend", { textContent: title }), ...children);
  $("filters").querySelector("form").append(made);
}

function filter(name, color, output, ...inputs) {
  const label = element("span", { className: "name", title: name }, ...(color ? [swatch(color)] : []), name);
  return element("div", { className: "filter" }, label, output, ...inputs);
}

function sliders(measure, color) {
  const make = (value, which) => element("input", {
    type: "range", min: 0, max: 100, step: 0.5, value, ariaLabel: `${measure.label} ${which}`,
  });
  const [low, high] = [make(0, "at least"), make(100, "at most")];
  const output = element("output");
  const pair = element("div", { className: "pair" }, low, high);
  pair.dataset.measure = measure.name;
  const show = () => {
    pair.style.setProperty("--low", `${low.value}%`);
    pair.style.setProperty("--high", `${high.value}%`);
    output.textContent = +low.value || +high.value < 100 ? `${low.value}–${high.value} %` : "";
  };
  low.addEventListener("input", () => { low.value = Math.min(low.value, high.value); show(); changed(); });
  high.addEventListener("input", () => { high.value = Math.max(low.value, high.value); show(); changed(); });
  controls.push({
    write(into) {
      const bounds = [+low.value ? low.value / 100 : null, +high.value < 100 ? high.value / 100 : null];
      if (bounds.some((bound) => bound !== null)) into.ranges[measure.name] = bounds;
    },
    reset() { low.value = 0; high.value = 100; show(); },
  });
  return filter(measure.label, color, output, pair);
}

function bounds(measure) {
  const inputs = ["min", "max"].map((which) => element("input", {
    type: "number", step: "any", placeholder: which, ariaLabel: `${measure.label} ${which}`,
  }));
  inputs.forEach((input) => input.addEventListener("input", changed));
  controls.push({
    write(into) {
      const given = inputs.map((input) => input.value === "" ? null : +input.value);
      if (given.some((bound) => bound !== null)) into.ranges[measure.name] = given;
    },
    reset() { inputs.forEach((input) => { input.value = ""; }); },
  });
  return filter(measure.label, null, "", element("div", { className: "inputs" }, ...inputs));
}

function part(name) {
  const input = element("input", { type: "search", placeholder: "contains", ariaLabel: `${name} contains` });
  input.addEventListener("input", changed);
  controls.push({
    write(into) { if (input.value) into.texts[name] = input.value; },
    reset() { input.value = ""; },
  });
  return filter(name, null, "", element("div", { className: "inputs" }, input));
}

function kinds(counts) {
  const boxes = Object.entries(counts).map(([kind, count]) => {
    const box = element("input", { type: "checkbox", checked: true, value: kind });
    box.addEventListener("change", changed);
    return [box, element("label", { className: "kind" }, box, kind,
      element("span", { className: "count", textContent: count.toLocaleString("en") }))];
  });
  controls.push({
    write(into) {
      const checked = boxes.map(([box]) => box).filter((box) => box.checked);
      if (checked.length < boxes.length) into.kinds = checked.map((box) => box.value);
    },
    reset() { boxes.forEach(([box]) => { box.checked = true; }); },
  });
  return boxes.map(([, label]) => label);
}

function makeFilters() {
  const of = (group) => run.measures.filter((measure) => measure.group === group);
  const colors = Object.fromEntries(run.classes.map((c) => [c.field, c.color]));
  const color = (measure) => colors[measure.name.slice(measure.group.length + 1)];
  const add = (title, group, make) => {
    const filters = of(group).map((measure) => make(measure, color(measure)));
    if (filters.length) fieldset(title, ...filters);
  };
  fieldset("Status", ...kinds(run.kinds));
  add("Coverage", "coverage", sliders);
  add("Uncertainty", "uncertainty", sliders);
  add("Formulas", "formulas", bounds);
  add("Columns", "columns", bounds);
  fieldset("Texts", ...run.texts.map(part));
  add("Confidence", "confidence", sliders);
  $("condition").placeholder = `coverage.${run.classes.at(-1).field} > 0.2`;
  controls.push({
    write(into) { into.condition = $("condition").value; },
    reset() { $("condition").value = ""; },
  });

  const choices = [{ name: "image_id", label: "image_id" }, ...run.measures.filter((m) => m.group !== "confidence")];
  for (const { name, label, group } of choices) {
    const text = group === "coverage" ? `${label} (share)` : label;
    $("sort").append(element("option", { value: name, textContent: text }));
  }
}

// ---------------------------------------------------------------------------------------- the grid

let timer;
function changed() {
  clearTimeout(timer);
  timer = setTimeout(reload, PAUSE_MS);
}

async function reload() {
  clearTimeout(timer);
  wanted = { ranges: {}, texts: {}, sort: $("sort").value, descending: $("descending").checked };
  for (const control of controls) control.write(wanted);
  const mine = ++generation;
  loading = null;
  try {
    const page = await ask("images", wanted);
    if (mine !== generation) return;
    tell(null);
    $("grid").replaceChildren();
    empty.clear();
    images = [];
    window.scrollTo(0, 0);
    append(page.images);
    const { count } = await ask("count", wanted);
    if (mine !== generation) return;
    $("hits").textContent = `${count.toLocaleString("en")} ${count === 1 ? "image" : "images"}`;
  } catch (error) {
    if (mine === generation) tell(error);
  }
}

function append(page) {
  const first = images.length;
  images.push(...page);
  atEnd = page.length === 0;
  $("end").textContent = atEnd && images.length ? "That is all." : atEnd ? "No image is like that." : "";
  if (page.length) {
    const section = element("section");
    section.dataset.first = first;
    section.dataset.end = images.length;
    fill(section);
    $("grid").append(section);
    near.observe(section);
  }
  end.unobserve($("end")); // observing anew tells whether it can be seen still
  end.observe($("end"));
}

function more() {
  if (atEnd || loading || !images.length) return loading;
  const { value, image_id } = images.at(-1);
  const mine = generation;
  loading = ask("images", { ...wanted, after: [value, image_id] }).then((page) => {
    if (mine !== generation) return;
    loading = null;
    append(page.images);
  }).catch((error) => {
    if (mine !== generation) return;
    loading = null;
    tell(error);
  });
  return loading;
}

// A page far away keeps its place and lets its pictures go: of a million, few are held.
const near = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting && !target.hasChildNodes()) {
      fill(target);
      target.style.height = "";
    } else if (!isIntersecting && target.hasChildNodes()) {
      target.style.height = `${target.offsetHeight}px`;
      for (const open of target.querySelectorAll(".tile")) inView.unobserve(open);
      target.replaceChildren();
    }
  }
}, { rootMargin: AHEAD });

const end = new IntersectionObserver((entries) => {
  if (entries.some((entry) => entry.isIntersecting)) more();
}, { rootMargin: AHEAD });

function fill(section) {
  for (let index = +section.dataset.first; index < +section.dataset.end; index++) {
    section.append(tile(index));
  }
}

function tile(index) {
  const { image_id, uri, kind, message, value } = images[index];
  const open = element("button", { className: "tile", title: uri, ariaLabel: `open ${uri}` });
  open.addEventListener("click", () => enlarge(index));
  if (kind === "ok") {
    open.dataset.id = image_id;
    inView.observe(open);
  } else {
    open.append(element("span", { className: "why", textContent: `${kind}: ${message ?? ""}` }));
  }
  const box = element("input", { type: "checkbox", ariaLabel: "send to labelling" });
  box.addEventListener("change", () => mark(image_id, uri, box.checked));
  const name = uri.split("/").pop();
  const made = element("figure", {}, open, element("figcaption", {}, element("label", {}, box),
    element("span", { className: "id", textContent: name, title: uri })));
  if (value !== null) {
    const measure = run.measures.find((m) => m.name === wanted.sort);
    made.lastChild.append(element("span", { className: "value", textContent: format(measure, value) }));
  }
  made.dataset.id = image_id;
  showMark(made);
  return made;
}

const empty = new Set(); // tiles in view, or nearly, that have no pictures yet
let numLoading = 0;

const inView = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting && !target.hasChildNodes()) empty.add(target);
    else empty.delete(target);
  }
  loadPictures();
}, { rootMargin: "400px" });

function loadPictures() {
  for (const open of empty) {
    if (numLoading >= MAX_LOADING || shown >= 0) return;
    empty.delete(open);
    numLoading += 1;
    const loads = ["photo", ...(run.masks ? ["mask"] : [])].map((layer) => {
      const picture = element("img", { className: layer, alt: "" });
      open.append(picture);
      return loaded(picture, `pictures/small/${open.dataset.id}/${layer}`);
    });
    Promise.all(loads).then(() => {
      numLoading -= 1;
      loadPictures();
    });
  }
}

// An answer without a picture (there is no mask) leaves none.
function loaded(picture, source) {
  return new Promise((resolve) => {
    picture.addEventListener("load", resolve);
    picture.addEventListener("error", () => { picture.remove(); resolve(); });
    picture.src = source;
  });
}

// ----------------------------------------------------------------------------- sent to labelling

function mark(image_id, uri, wished) {
  if (wished) marked.set(image_id, uri);
  else marked.delete(image_id);
  showMarks();
}

function showMark(figure) {
  const is = marked.has(+figure.dataset.id);
  figure.classList.toggle("marked-one", is);
  figure.querySelector("input").checked = is;
}

function showMarks() {
  $("marked").textContent = `${marked.size.toLocaleString("en")} marked for labelling`;
  for (const id of ["csv", "json", "clear"]) $(id).disabled = !marked.size;
  for (const figure of document.querySelectorAll("#grid figure")) showMark(figure);
  if (shown >= 0) $("mark").checked = marked.has(images[shown].image_id);
}

function save(content, type, extension) {
  const url = URL.createObjectURL(new Blob([content], { type }));
  const name = `${run.name}-to-label.${extension}`;
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

function saveCsv() {
  const quoted = (text) => `"${text.replaceAll('"', '""')}"`;
  const lines = [...marked].map(([image_id, uri]) => `${image_id},${quoted(uri)}\r\n`);
  save(`image_id,uri\r\n${lines.join("")}`, "text/csv", "csv");
}

function saveJson() {
  const list = [...marked].map(([image_id, uri]) => ({ image_id, uri }));
  save(`${JSON.stringify(list, null, 1)}\n`, "application/json", "json");
}

// --------------------------------------------------------------------------------- one image large

let maskImage = null; // its mask, to be painted

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
  $("photo").removeAttribute("src"); // or the one before is seen until this one is there
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

// The whole mask, or only the class of one colour.
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

// ---------------------------------------------------------------------------------------- begin

function listen() {
  const form = $("filters").querySelector("form");
  form.addEventListener("submit", (event) => { event.preventDefault(); reload(); });
  form.addEventListener("reset", (event) => {
    event.preventDefault();
    for (const control of controls) control.reset();
    reload();
  });
  $("condition").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) reload();
  });
  $("sort").addEventListener("change", reload);
  $("descending").addEventListener("change", reload);
  for (const id of ["opacity", "large-opacity"]) {
    $(id).addEventListener("input", () => setOpacity($(id).value));
  }
  $("csv").addEventListener("click", saveCsv);
  $("json").addEventListener("click", saveJson);
  $("clear").addEventListener("click", () => { marked.clear(); showMarks(); });
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  $("close").addEventListener("click", () => $("large").close());
  $("large").addEventListener("close", () => { shown = -1; loadPictures(); });
  $("copy").addEventListener("click", async () => {
    getSelection().selectAllChildren($("uri"));
    // Browsers give the clipboard to localhost and https alone; elsewhere the selection is there.
    await navigator.clipboard?.writeText(images[shown].uri);
    $("copy").textContent = navigator.clipboard ? "Copied" : "Selected: press Ctrl-C";
    setTimeout(() => { $("copy").textContent = "Copy URI"; }, 1500);
  });
  $("mark").addEventListener("change", () => {
    const { image_id, uri } = images[shown];
    mark(image_id, uri, $("mark").checked);
  });
  document.addEventListener("keydown", (event) => {
    if (shown < 0 || event.target.type === "range") return;
    if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "ArrowRight") step(1);
    else if (event.key === "m") $("mark").click();
    else return;
    event.preventDefault();
  });
}

async function begin() {
  listen();
  const header = document.querySelector("header");
  new ResizeObserver(() => {
    document.documentElement.style.setProperty("--header", `${header.offsetHeight}px`);
  }).observe(header);
  if (matchMedia("(max-width: 50rem)").matches) $("filters").open = false;
  try {
    run = await ask("run");
    document.title = `${run.name} · segbatch`;
    $("name").textContent = run.name;
    const rows = Object.values(run.kinds).reduce((sum, count) => sum + count, 0);
    const far = rows < run.images ? ` · ${rows.toLocaleString("en")} of ${run.images.toLocaleString("en")} so far` : "";
    $("facts").textContent = `${run.uri} · ${run.status}${far} · ${run.model}`;
    makeFilters();
    await reload();
  } catch (error) {
    tell(error);
  }
}

begin();
