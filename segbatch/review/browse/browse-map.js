// The images that match as points on a map, in the place of the grid. A click opens an image.
"use strict";

const PLAIN = "#3b6ea8"; // of points, where no class is sorted by
let map = null; // made when it is first shown: MapLibre takes a second to load

function load(script) {
  return new Promise((resolve, reject) => {
    const made = element("script", { src: script });
    made.addEventListener("load", resolve);
    made.addEventListener("error", () => reject(new Error(`${script} did not load`)));
    document.head.append(made);
  });
}

async function showMap(mine) {
  const { points } = await ask("points", query);
  if (mine !== generation) return;
  $("grid").replaceChildren(); // its tiles are of other images
  empty.clear();
  images = points;
  atEnd = true;
  if (!map) {
    await load("maplibre-gl.js");
    const onClick = (index) => enlarge(images[index]);
    map = imageMap($("map-place"), { tiles: run.tiles, onClick, describe: describePoint });
  }
  const measure = run.measures.find((m) => m.name === query.sort);
  const isClass = measure?.group === "coverage";
  const color = isClass ? run.classes.find((c) => measure.name === `coverage.${c.field}`).color : PLAIN;
  const most = await map?.show(points.map((p) => ({ ...p, value: measure ? p.value : 1 })), color);
  const shown = `${integer(points.length)} images with coordinates`;
  $("map-note").textContent = measure
    ? `${shown}; the stronger the colour, the more ${measure.label}, up to ${format(measure.group, most)}`
    : `${shown}; sort by a class to colour them by it`;
}

function describePoint(index) {
  const measure = run.measures.find((m) => m.name === query.sort);
  const { uri, value } = images[index];
  return measure ? `${measure.label} ${format(measure.group, value)} · ${uri}` : uri;
}
