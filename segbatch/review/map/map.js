// Images as points on a map, coloured by a number from 0 to 1. The ground is a blank graticule, or
// tiles from an address that the user has named; the map asks for nothing else.
"use strict";

const STEPS = [90, 45, 30, 15, 10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001];
const LINES = 8; // across the view, about

// The map in the element `place`; `onClick` gets the index of a point. Null without WebGL.
function imageMap(place, { tiles, onClick, describe }) {
  const theme = (name) => getComputedStyle(place).getPropertyValue(name).trim();
  const pale = rgb(theme("--map-pale")); // of a point whose number is 0
  const sources = {
    graticule: { type: "geojson", data: collection([]) },
    points: { type: "geojson", data: collection([]) },
  };
  const layers = [{ id: "ground", type: "background", paint: { "background-color": theme("--map-ground") } }];
  if (tiles) {
    sources.tiles = { type: "raster", tiles: [tiles], tileSize: 256 };
    layers.push({ id: "tiles", type: "raster", source: "tiles" });
  }
  layers.push(
    { id: "graticule", type: "line", source: "graticule", paint: { "line-color": theme("--map-line"), "line-width": 0.75 } },
    {
      id: "points", type: "circle", source: "points",
      paint: {
        "circle-color": ["get", "color"],
        "circle-radius": ["interpolate", ["linear"], ["zoom"], 2, 4, 16, 8],
        "circle-stroke-color": theme("--ink"), "circle-stroke-width": 0.75,
      },
    },
  );
  let map;
  try {
    map = new maplibregl.Map({
      container: place, style: { version: 8, sources, layers }, attributionControl: false,
      center: [0, 20], zoom: 1, dragRotate: false, pitchWithRotate: false, fadeDuration: 0,
      canvasContextAttributes: { preserveDrawingBuffer: true }, // or it is blank on paper
    });
  } catch {
    place.textContent = "This browser draws no maps: it has no WebGL.";
    return null;
  }
  map.touchZoomRotate.disableRotation();
  map.addControl(new maplibregl.NavigationControl({ showCompass: false }));
  const told = document.createElement("p");
  told.className = "map-told";
  place.append(told);
  map.on("moveend", () => map.getSource("graticule")?.setData(graticule(map.getBounds())));
  map.on("mousemove", "points", ({ features: [point] }) => {
    map.getCanvas().style.cursor = "pointer";
    told.textContent = describe(point.properties.index);
  });
  map.on("mouseleave", "points", () => {
    map.getCanvas().style.cursor = "";
    told.textContent = "";
  });
  if (onClick) map.on("click", "points", ({ features: [point] }) => onClick(point.properties.index));
  const ready = new Promise((resolve) => { map.on("load", resolve); });

  // Shows points {lon, lat, value}; `color` is that of value 1, of the form #rrggbb.
  async function show(points, color, { fit = true } = {}) {
    await ready;
    const full = rgb(color);
    const most = Math.max(...points.map(({ value }) => value ?? 0), 1e-9);
    const features = points.map(({ lon, lat, value }, index) => {
      const share = (value ?? 0) / most;
      const mixed = pale.map((none, at) => Math.round(none + share * (full[at] - none)));
      return {
        type: "Feature", geometry: { type: "Point", coordinates: [lon, lat] },
        properties: { index, color: `rgb(${mixed.join()})`, value: value ?? -1 },
      };
    });
    features.sort((a, b) => a.properties.value - b.properties.value); // the largest on top
    map.getSource("points").setData(collection(features));
    if (fit && points.length) {
      const bounds = points.reduce((known, { lon, lat }) => known.extend([lon, lat]),
        new maplibregl.LngLatBounds());
      map.fitBounds(bounds, { padding: 40, maxZoom: 16, animate: false });
    }
    map.getSource("graticule").setData(graticule(map.getBounds()));
    place.dataset.points = points.length; // for who waits until they are drawn
    return most;
  }

  return { map, show };
}

// The numbers of a colour #rrggbb.
function rgb(color) {
  return [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
}

function collection(features) {
  return { type: "FeatureCollection", features };
}

function graticule(bounds) {
  const [west, south, east, north] = [
    bounds.getWest(), Math.max(-85, bounds.getSouth()), bounds.getEast(), Math.min(85, bounds.getNorth()),
  ];
  const step = STEPS.findLast((degrees) => (east - west) / degrees <= LINES) ?? STEPS[0];
  const line = (coordinates) => ({ type: "Feature", geometry: { type: "LineString", coordinates } });
  const lines = [];
  for (let lon = Math.ceil(west / step) * step; lon <= east; lon += step) lines.push(line([[lon, south], [lon, north]]));
  for (let lat = Math.ceil(south / step) * step; lat <= north; lat += step) lines.push(line([[west, lat], [east, lat]]));
  return collection(lines);
}
