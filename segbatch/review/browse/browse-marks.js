// The images marked for labelling. The browser keeps them for this run; the server stores nothing.
"use strict";

const marked = new Map(); // image_id → uri

const marksKey = () => `segbatch marks ${run.uri} ${run.created}`;

function loadMarks() {
  try {
    for (const [image_id, uri] of JSON.parse(localStorage.getItem(marksKey())) ?? []) marked.set(image_id, uri);
  } catch {
    // A browser may forbid storage: then the marks last as long as the page.
  }
  showMarks();
}

function keepMarks() {
  try {
    if (marked.size) localStorage.setItem(marksKey(), JSON.stringify([...marked]));
    else localStorage.removeItem(marksKey());
  } catch {
    // as above
  }
}

function mark(image_id, uri, wished) {
  if (wished) marked.set(image_id, uri);
  else marked.delete(image_id);
  keepMarks();
  showMarks();
}

function clearMarks() {
  marked.clear();
  keepMarks();
  showMarks();
}

function showMark(figure) {
  const is = marked.has(+figure.dataset.id);
  figure.classList.toggle("marked-one", is);
  figure.querySelector("input").checked = is;
}

function showMarks() {
  $("marks").hidden = !marked.size;
  $("marked").textContent = `${integer(marked.size)} marked for labelling`;
  for (const figure of document.querySelectorAll("#grid figure")) showMark(figure);
  if (shown) $("mark").checked = marked.has(shown.image_id);
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
