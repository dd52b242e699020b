// The map of the report: `classes`, `places` and `tiles` stand above.
"use strict";

const percent = (share) => `${(100 * share).toFixed(1)}%`;
const chosen = document.getElementById("map-class");
const drawn = imageMap(document.getElementById("map-place"), {
  tiles,
  describe(index) {
    const [uri, , , shares] = places[index];
    return `${classes[chosen.value].name} ${percent(shares[chosen.value])} · ${uri}`;
  },
});

async function color(fit) {
  const { name, color } = classes[chosen.value];
  const points = places.map(([, lon, lat, shares]) => ({ lon, lat, value: shares[chosen.value] }));
  const most = await drawn.show(points, color, { fit });
  document.getElementById("map-most").textContent = `up to ${percent(most)} ${name}`;
}

if (drawn) {
  chosen.addEventListener("change", () => color(false));
  color(true);
}
