// The page of a run. All text from the run (URIs, names, columns) may be hostile: it enters the page
// as text content only.
"use strict";

const $ = (id) => document.getElementById(id);
const AHEAD = "1500px"; // load this far below the visible part
const PAUSE_MS = 200; // after the last change of a filter
// Tiles whose two pictures load at a time. A browser has six connections, and slow storage blocks
// them: a clicked image needs a free one.
const MAX_LOADING = 2;

let run; // the answer of /run
let query = {}; // the query for /images
let images = []; // of all pages so far
let atEnd = false;
let loading = null; // the promise of the next page
let generation = 0; // answers to older queries are dropped
let shown = -1; // index of the large image
const marked = new Map(); // image_id → uri; only in the page, the server stores nothing
const controls = []; // each {write(query), reset()}

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
  const search = parameters ? `?${new URLSearchParams({ query: JSON.stringify(parameters) })}` : "";
  const answer = await fetch(path + search, { headers: { Accept: "application/json" } });
  const text = await answer.text();
  let content;
  try {
    content = JSON.parse(text);
  } catch {
    throw new Error(text || answer.statusText);
  }
  if (!answer.ok) throw new Error(content.error);
  return content;
}

function showError(error) {
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
  $("map-on").addEventListener("change", reload);
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
    // Browsers give the clipboard to localhost and https only; elsewhere the text stays selected.
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
    const progress = rows < run.images ? ` · ${rows.toLocaleString("en")} of ${run.images.toLocaleString("en")} so far` : "";
    $("facts").textContent = `${run.uri} · ${run.status}${progress} · ${run.model}`;
    makeFilters();
    $("map-switch").hidden = !run.map;
    await reload();
  } catch (error) {
    showError(error);
  }
}

document.addEventListener("DOMContentLoaded", begin);
