// The address of what the page shows: filters, order and the open image, in the part after the #,
// which stays in the browser. Users' names have a prefix, so that none is mistaken for another key.
"use strict";

const EMPTY = {
  ranges: {}, kinds: null, values: {}, texts: {}, condition: "", sort: "image_id", descending: false,
};

function addressOf(query) {
  const given = new URLSearchParams();
  if (query.sort !== EMPTY.sort) given.set("sort", query.sort);
  if (query.descending) given.set("order", "descending");
  for (const kind of query.kinds ?? []) given.append("kind", kind);
  for (const [name, bounds] of Object.entries(query.ranges)) {
    given.set(name, bounds.map((bound) => bound ?? "").join(".."));
  }
  for (const [name, values] of Object.entries(query.values)) {
    for (const value of values) given.append(value === null ? `none.${name}` : `value.${name}`, value ?? "");
  }
  for (const [name, part] of Object.entries(query.texts)) given.set(`text.${name}`, part);
  if (query.condition.trim()) given.set("sql", query.condition);
  if ($("map-on").checked) given.set("view", "map");
  if (shown) given.set("image", shown.image_id);
  return given.toString();
}

// Opening an image is a step that the browser's Back takes back; everything else replaces.
function saveAddress({ isStep = false } = {}) {
  const hash = addressOf(query);
  if (`#${hash}` === (location.hash || "#")) return;
  const address = hash ? `#${hash}` : location.pathname;
  if (isStep) history.pushState({ opened: true }, "", address);
  else history.replaceState(history.state, "", address);
}

// Sets the controls, and gives the id of the image to open, or null.
function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const read = { ...EMPTY, ranges: {}, values: {}, texts: {} };
  for (const [key, value] of given) {
    const name = key.slice(key.indexOf(".") + 1);
    if (key === "sort") read.sort = value;
    else if (key === "order") read.descending = value === "descending";
    else if (key === "kind") (read.kinds ??= []).push(value);
    else if (key === "sql") read.condition = value;
    else if (key.startsWith("none.")) (read.values[name] ??= []).push(null);
    else if (key.startsWith("value.")) (read.values[name] ??= []).push(value);
    else if (key.startsWith("text.")) read.texts[name] = value;
    else if (run.measures.some((measure) => measure.name === key)) {
      read.ranges[key] = value.split("..").map((bound) => bound === "" ? null : exactNumber(bound));
    }
  }
  query = read;
  $("map-on").checked = given.get("view") === "map" && Boolean(run.coordinates);
  for (const control of controls) control.read(read);
  return given.has("image") ? +given.get("image") : null;
}

function withoutImage(address) {
  const given = new URLSearchParams(address);
  given.delete("image");
  return given.toString();
}

async function goToAddress() {
  const before = withoutImage(addressOf(query));
  const opened = readAddress();
  if (withoutImage(addressOf(query)) !== before) await reload();
  if (opened === null) $("large").close();
  else if (opened !== shown?.image_id) await enlargeById(opened);
}
