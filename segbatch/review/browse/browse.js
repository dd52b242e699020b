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

document.addEventListener("DOMContentLoaded", begin);
