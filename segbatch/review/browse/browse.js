// The page of a run. All text from the run (URIs, names, columns) may be hostile: it enters the page
// as text content only.
"use strict";

const $ = (id) => document.getElementById(id);
const AHEAD = "1500px"; // load this far below the visible part
const PAUSE_MS = 200; // after the last change of a filter
const BUSY_MS = 400; // until a query that takes longer is shown to be at work
// Tiles whose two pictures load at a time. A browser has six connections, and slow storage blocks
// them: a clicked image needs a free one.
const MAX_LOADING = 2;

let run; // the answer of /run
let query = {}; // the query for /images
let images = []; // of all pages so far
let atEnd = false;
let loading = null; // the promise of the next page
let generation = 0; // answers to older queries are dropped
let shown = null; // the large image
const controls = []; // each {write(query), read(query)}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const integer = (value) => value.toLocaleString("en");
const percent = (value) => value === null || value === undefined ? "–" : `${(100 * value).toFixed(1)} %`;
// Six significant digits below 1, otherwise six decimals: ids and coordinates have many digits.
// A text is an integer of more digits than a number has.
const number = (value) => value === null || value === undefined ? "–" : typeof value === "string" ? value
  : String(+(Math.abs(value) < 1 ? value.toPrecision(6) : value.toFixed(6)));
// The number in a text, or the text itself if it is an integer that a number would round.
const exactNumber = (text) => /^-?\d+$/.test(text) && !Number.isSafeInteger(+text) ? text : parseFloat(text);
const moment = (value) => value === null ? "–" : isoDate(value).slice(0, 16).replace("T", " ");


// Seconds since 1970 as 2026-11-05T14:30:00.000Z; empty for a date out of range.
function isoDate(seconds) {
  const date = new Date(1000 * seconds);
  return Number.isNaN(date.getTime()) ? "" : date.toISOString();
}

const formats = { formulas: number, columns: number, dates: moment, texts: (text) => text ?? "–" };
const format = (group, value) => (formats[group] ?? percent)(value);
const groupOf = (name) => name.split(".", 1)[0];

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

// A wrong condition is said at the condition, and what it does not describe is dimmed.
function showError(error) {
  const isCondition = Boolean(error && query.condition?.trim());
  document.body.classList.toggle("stale", Boolean(error));
  $("condition").toggleAttribute("aria-invalid", isCondition);
  $("wrong").hidden = !isCondition;
  $("wrong").textContent = isCondition ? error.message : "";
  $("error").hidden = !error;
  const older = isCondition && images.length ? "\nThe images below are from before this condition." : "";
  $("error").textContent = error ? error.message + older : "";
}

function listen() {
  const form = $("filters").querySelector("form");
  form.addEventListener("submit", (event) => { event.preventDefault(); reload(); });
  form.addEventListener("reset", (event) => {
    event.preventDefault();
    const { sort, descending } = query;
    for (const control of controls) control.read({ ...EMPTY, sort, descending });
    reload();
  });
  $("condition").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); reload(); }
  });
  for (const id of ["sort", "map-on", "descending"]) $(id).addEventListener("change", reload);
  for (const id of ["opacity", "large-opacity"]) {
    $(id).addEventListener("input", () => setOpacity($(id).value));
  }
  $("csv").addEventListener("click", saveCsv);
  $("json").addEventListener("click", saveJson);
  $("clear").addEventListener("click", clearMarks);
  $("grid").addEventListener("keydown", moveInGrid);
  addEventListener("popstate", goToAddress);
  listenLarge();
}

function setOpacity(share) {
  document.documentElement.style.setProperty("--opacity", share / 100);
  $("opacity").value = $("large-opacity").value = share;
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
    $("name").textContent = run.against ? `${run.name} against ${run.against.name}` : run.name;
    const rows = Object.values(run.kinds).reduce((sum, count) => sum + count, 0);
    const progress = rows < run.images ? ` · ${integer(rows)} of ${integer(run.images)} so far` : "";
    $("facts").textContent = `${run.uri} · ${run.status}${progress} · ${run.model}`;
    $("map-switch").hidden = !run.coordinates;
    loadMarks();
    makeSides();
    makeBasicControls();
    const opened = readAddress();
    await reload();
    if (opened !== null) await enlargeById(opened);
    makeFilters(await ask("facets"));
    if (addressOf(askedFor()) !== addressOf(query)) await reload(); // some had no control
  } catch (error) {
    showError(error);
  }
}

document.addEventListener("DOMContentLoaded", begin);
