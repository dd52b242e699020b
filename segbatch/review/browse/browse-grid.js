// The grid of images, loaded page by page while scrolling.
"use strict";

let timer;
function changed() {
  clearTimeout(timer);
  timer = setTimeout(reload, PAUSE_MS);
}

// The query that the controls make.
function askedFor() {
  const asked = { ...EMPTY, ranges: {}, values: {}, texts: {} };
  for (const control of controls) control.write(asked);
  return asked;
}

async function reload() {
  clearTimeout(timer);
  query = askedFor();
  saveAddress();
  showActive();
  const mine = ++generation;
  loading = null;
  const busy = setTimeout(() => document.body.classList.add("busy"), BUSY_MS);
  const onMap = $("map-on").checked;
  $("map-view").hidden = !onMap;
  $("grid").hidden = $("end").hidden = onMap;
  try {
    if (onMap) {
      await showMap(mine);
      if (mine !== generation) return;
      showError(null);
      const { count } = await ask("count", query);
      if (mine === generation) showHits(count);
      return;
    }
    const page = await ask("images", query);
    if (mine !== generation) return;
    showError(null);
    $("grid").replaceChildren();
    empty.clear();
    images = [];
    window.scrollTo(0, 0);
    append(page.images);
    const { count } = await ask("count", query);
    if (mine !== generation) return;
    showHits(count);
  } catch (error) {
    if (mine === generation) showError(error);
  } finally {
    clearTimeout(busy);
    if (mine === generation) document.body.classList.remove("busy");
  }
}

function showHits(count) {
  $("hits").textContent = `${integer(count)} ${count === 1 ? "image" : "images"}`;
}

function append(page) {
  const first = images.length;
  images.push(...page);
  atEnd = page.length === 0;
  $("end").textContent = atEnd && images.length ? "End of results" : atEnd ? "No image matches." : "";
  if (page.length) {
    const section = element("section");
    section.dataset.first = first;
    section.dataset.end = images.length;
    fill(section);
    $("grid").append(section);
    near.observe(section);
  }
  end.unobserve($("end")); // observing it again reports whether it is visible
  end.observe($("end"));
}

function more() {
  if (atEnd || loading || !images.length) return loading;
  const { value, image_id } = images.at(-1);
  const mine = generation;
  loading = ask("images", { ...query, after: [value, image_id] }).then((page) => {
    if (mine !== generation) return;
    loading = null;
    append(page.images);
  }).catch((error) => {
    if (mine !== generation) return;
    loading = null;
    showError(error);
  });
  return loading;
}

// A page far from view keeps its height and drops its pictures, so that few are in memory.
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
  open.addEventListener("click", () => enlarge(images[index]));
  if (kind === "ok") {
    open.dataset.id = image_id;
    inView.observe(open);
  } else {
    open.append(element("span", { className: "why", textContent: `${kind}: ${message ?? ""}` }));
  }
  const box = element("input", { type: "checkbox", ariaLabel: "send to labelling" });
  box.addEventListener("change", () => mark(image_id, uri, box.checked));
  const name = baseName(uri);
  const made = element("figure", {}, open, element("figcaption", {}, element("label", {}, box),
    element("span", { className: "id", textContent: name, title: uri })));
  if (value !== null) {
    const text = format(groupOf(query.sort), value);
    made.lastChild.append(element("span", { className: "value", textContent: text, title: text }));
  }
  made.dataset.id = image_id;
  showMark(made);
  return made;
}

// The last part of a URI. The query of a web address may be a signature.
function baseName(uri) {
  const path = /^https?:/i.test(uri) ? uri.replace(/\?[^#]*/, "") : uri;
  return path.replace(/\/+$/, "").split("/").pop();
}

// The tile of an image, drawn again if it was far from view; null if the grid has no such image.
function tileAt(index) {
  const section = [...$("grid").children].find(({ dataset }) => +dataset.first <= index && index < +dataset.end);
  if (section && !section.hasChildNodes()) {
    fill(section);
    section.style.height = "";
  }
  return section?.children[index - section.dataset.first].querySelector(".tile") ?? null;
}

// Arrow keys move between tiles, and m marks one.
function moveInGrid(event) {
  const figure = event.target.closest("figure");
  if (!figure || event.altKey || event.ctrlKey || event.metaKey) return;
  const index = images.findIndex(({ image_id }) => image_id === +figure.dataset.id);
  const perRow = getComputedStyle(figure.parentElement).gridTemplateColumns.split(" ").length;
  const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -perRow, ArrowDown: perRow }[event.key];
  if (event.key === "m") figure.querySelector("figcaption input").click();
  else if (by && images[index + by]) tileAt(index + by)?.focus();
  else return;
  event.preventDefault();
}

const empty = new Set(); // tiles in or near the view that have no pictures yet
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
    if (numLoading >= MAX_LOADING || shown) return;
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

// Removes the picture if the answer has none, as for an image without a mask.
function loaded(picture, source) {
  return new Promise((resolve) => {
    picture.addEventListener("load", resolve);
    picture.addEventListener("error", () => { picture.remove(); resolve(); });
    picture.src = source;
  });
}
