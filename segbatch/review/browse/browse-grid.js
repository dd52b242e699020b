// The grid of images, loaded page by page while scrolling, and the images marked for labelling.
"use strict";

let timer;
function changed() {
  clearTimeout(timer);
  timer = setTimeout(reload, PAUSE_MS);
}

async function reload() {
  clearTimeout(timer);
  query = { ranges: {}, texts: {}, sort: $("sort").value, descending: $("descending").checked };
  for (const control of controls) control.write(query);
  const mine = ++generation;
  loading = null;
  const onMap = $("map-on").checked;
  $("map-view").hidden = !onMap;
  $("grid").hidden = $("end").hidden = onMap;
  try {
    if (onMap) {
      await showMap(mine);
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
  }
}

function showHits(count) {
  $("hits").textContent = `${count.toLocaleString("en")} ${count === 1 ? "image" : "images"}`;
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
    const measure = run.measures.find((m) => m.name === query.sort);
    made.lastChild.append(element("span", { className: "value", textContent: format(measure, value) }));
  }
  made.dataset.id = image_id;
  showMark(made);
  return made;
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

// Removes the picture if the answer has none, as for an image without a mask.
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
