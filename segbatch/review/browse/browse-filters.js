// The filters: a control for each column of the user's, class, formula and kind of failure.
"use strict";

function section(title, ...children) {
  const made = element("fieldset", {}, element("legend", { textContent: title }), ...children);
  $("filters").querySelector("form").append(made);
}

function folded(title, ...children) {
  const form = $("filters").querySelector("form");
  form.append(element("details", { className: "folded" }, element("summary", { textContent: title }), ...children));
}

function filter(name, color, output, ...inputs) {
  const label = element("span", { className: "name", title: name }, ...(color ? [swatch(color)] : []), name);
  return element("div", { className: "filter" }, label, output, ...inputs);
}

function part(name) {
  const input = element("input", { type: "search", placeholder: "contains", ariaLabel: `${name} contains` });
  input.addEventListener("input", changed);
  controls.push({
    write(into) { if (input.value) into.texts[name] = input.value; },
    read(from) { input.value = from.texts[name] ?? ""; },
  });
  return filter(name, null, "", element("div", { className: "inputs" }, input));
}

// A box for each of few values; without a tick all images are shown. `counts` are [value, count].
function choices(counts, write, read) {
  const most = Math.max(...counts.map(([, count]) => count));
  const boxes = counts.map(([value, count]) => {
    const box = element("input", { type: "checkbox" });
    box.addEventListener("change", changed);
    const label = element("label", { className: "choice" }, box,
      element("span", { className: "name", textContent: value ?? "(none)", title: value ?? "" }),
      element("span", { className: "count", textContent: integer(count) }));
    label.style.setProperty("--share", `${(100 * count) / most}%`);
    return { value, box, label };
  });
  controls.push({
    write(into) {
      const ticked = boxes.filter(({ box }) => box.checked).map(({ value }) => value);
      if (ticked.length) write(into, ticked);
    },
    read(from) {
      const ticked = read(from) ?? [];
      for (const { value, box } of boxes) box.checked = ticked.includes(value);
    },
  });
  return boxes.map(({ label }) => label);
}

function values(name, counts) {
  return choices(counts, (into, ticked) => { into.values[name] = ticked; }, (from) => from.values[name]);
}

// The orders, grouped by where their numbers come from.
function makeOrders() {
  const add = (title, orders) => {
    if (!orders.length) return;
    const group = element("optgroup", { label: title });
    group.append(...orders.map(([value, textContent]) => element("option", { value, textContent })));
    $("sort").append(group);
  };
  const of = (group) => run.measures.filter((measure) => measure.group === group);
  const named = (measures) => measures.map(({ name, label }) => [name, label]);
  const numbers = of("columns").map(({ label }) => label);
  const prefix = (name) => numbers.includes(name) ? "columns" : "texts";
  add("Image", [["image_id", "image_id"], ["texts.uri", "uri"]]);
  add("Your columns", run.columns.map((name) => [`${prefix(name)}.${name}`, name]));
  add("Classes, by share", named(of("coverage")));
  add("Formulas", named(of("formulas")));
  add(`Against ${run.against?.name}`, named(of("change")));
  const confidences = of("confidence").map(({ name, label }) => [name, `confidence of ${label}`]);
  add("Model", [...named(of("uncertainty")), ...confidences]);
}

// The order and the condition, which need no facets.
function makeBasicControls() {
  makeOrders();
  $("condition").placeholder = `SQL: coverage.${run.classes.at(-1).field} > 0.2`;
  controls.push({
    write(into) {
      into.condition = $("condition").value;
      into.sort = $("sort").value || EMPTY.sort;
      into.descending = $("descending").checked;
    },
    read(from) {
      $("condition").value = from.condition;
      $("sort").value = from.sort;
      if (!$("sort").value) $("sort").value = EMPTY.sort;
      $("descending").checked = from.descending;
    },
  });
  // Filters of the address hold until they have controls of their own.
  controls.push({
    write(into) {
      if (hasFilters) return;
      const { ranges, kinds, values, texts } = query;
      Object.assign(into, structuredClone({ ranges, kinds, values, texts }));
    },
    read() {},
  });
}

let hasFilters = false;

// Makes a control of each facet, an answer of /facets.
function makeFilters(facets) {
  const first = controls.length;
  const form = $("filters").querySelector("form");
  const of = (group) => run.measures.filter((measure) => measure.group === group);
  const range = (measure) => slider(measure, facets.ranges[measure.name], colorOf(measure));
  const ranges = (group) => of(group).filter(({ name }) => facets.ranges[name]).map(range);
  const add = (make, title, filters) => { if (filters.length) make(title, ...filters); };

  const texts = [];
  const places = [];
  for (const name of run.columns) {
    const measure = [...of("columns"), ...of("dates")]
      .find((known) => known.label === name && facets.ranges[known.name]);
    if (facets.values[name]) section(name, ...values(name, facets.values[name]));
    else if (measure && run.coordinates?.includes(name)) {
      places.push(element("span", { textContent: name }), range(measure));
    } else if (measure) section(name, range(measure));
    else if (run.texts.includes(name)) texts.push(part(name));
  }
  section("Texts", ...texts, part("uri"));
  add(folded, "Coordinates", places);
  const kinds = Object.entries(run.kinds);
  section("Status", ...choices(kinds, (into, ticked) => { into.kinds = ticked; }, (from) => from.kinds));
  add(section, "Classes, by share", ranges("coverage"));
  const absent = of("coverage").filter(({ name }) => !facets.ranges[name]);
  if (absent.length) {
    const textContent = `In no image: ${absent.map(({ label }) => label).join(", ")}`;
    form.append(element("p", { className: "quiet", textContent }));
  }
  add(section, "Formulas", ranges("formulas"));
  add(section, "Uncertainty", ranges("uncertainty"));
  if (run.against) add(section, `Against ${run.against.name}`, ranges("change"));
  add(folded, "Confidence", ranges("confidence"));
  removeOrders(absent);
  $("measuring").remove();
  for (const control of controls.slice(first)) control.read(query);
  hasFilters = true;
  showActive();
}

function colorOf({ name, group }) {
  if (!["coverage", "confidence"].includes(group)) return null;
  return run.classes.find(({ field }) => name === `${group}.${field}`).color;
}

// No image has these classes: an order by them would be none.
function removeOrders(classes) {
  for (const name of classes.map((measure) => measure.name)) {
    for (const gone of [name, name.replace("coverage.", "confidence.")]) {
      const option = $("sort").querySelector(`option[value="${CSS.escape(gone)}"]`);
      if (option && !option.selected) option.remove();
    }
  }
}

// The number of filters that are set.
function showActive() {
  const { ranges, values, texts, kinds, condition } = query;
  const num = [ranges, values, texts].reduce((sum, some) => sum + Object.keys(some).length, 0)
    + (kinds ? 1 : 0) + (condition.trim() ? 1 : 0);
  $("active").hidden = !num;
  $("active").textContent = `${num} set`;
  $("reset").disabled = !num;
}
