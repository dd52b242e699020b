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

// The order and the condition, which need no facets.
function makeBasicControls() {
  const add = (title, choices) => {
    if (!choices.length) return;
    const group = element("optgroup", { label: title });
    group.append(...choices.map(([value, textContent]) => element("option", { value, textContent })));
    $("sort").append(group);
  };
  const of = (...groups) => run.measures.filter(({ group }) => groups.includes(group)).map(({ name, label }) => [name, label]);
  const own = run.columns.map((name) => [run.measures.some((m) => m.name === `columns.${name}`) ? `columns.${name}` : `texts.${name}`, name]);
  add("Image", [["image_id", "image_id"], ["texts.uri", "uri"]]);
  add("Your columns", own);
  add("Classes, by share", of("coverage"));
  add("Formulas", of("formulas"));
  add(`Against ${run.against?.name}`, of("change"));
  add("Model", [...of("uncertainty"), ...of("confidence").map(([name, label]) => [name, `confidence of ${label}`])]);
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
    write(into) { if (!facets) Object.assign(into, { ranges: { ...query.ranges }, kinds: query.kinds, values: { ...query.values }, texts: { ...query.texts } }); },
    read() {},
  });
}

let facets = null; // the answer of /facets

function makeFilters(found) {
  const first = controls.length;
  const colors = Object.fromEntries(run.classes.map((c) => [c.field, c.color]));
  const color = ({ name, group }) => ["coverage", "confidence"].includes(group) ? colors[name.slice(group.length + 1)] : null;
  const of = (group) => run.measures.filter((measure) => measure.group === group);
  const range = (measure) => slider(measure, found.ranges[measure.name], color(measure));
  const ranges = (group) => of(group).filter((measure) => found.ranges[measure.name]).map(range);
  const add = (make, title, filters) => { if (filters.length) make(title, ...filters); };

  const texts = [];
  const places = [];
  for (const name of run.columns) {
    const measure = run.measures.find((m) => [`columns.${name}`, `dates.${name}`].includes(m.name) && found.ranges[m.name]);
    if (found.values[name]) section(name, ...values(name, found.values[name]));
    else if (measure && run.coordinates?.includes(name)) places.push(element("span", { textContent: name }), range(measure));
    else if (measure) section(name, range(measure));
    else if (run.texts.includes(name)) texts.push(part(name));
  }
  section("Texts", ...texts, part("uri"));
  add(folded, "Coordinates", places);
  section("Status", ...choices(Object.entries(run.kinds), (into, ticked) => { into.kinds = ticked; }, (from) => from.kinds));
  add(section, "Classes, by share", ranges("coverage"));
  const absent = of("coverage").filter((measure) => !found.ranges[measure.name]);
  if (absent.length) $("filters").querySelector("form").append(element("p", {
    className: "quiet", textContent: `In no image: ${absent.map(({ label }) => label).join(", ")}`,
  }));
  add(section, "Formulas", ranges("formulas"));
  add(section, "Uncertainty", ranges("uncertainty"));
  if (run.against) add(section, `Against ${run.against.name}`, ranges("change"));
  add(folded, "Confidence", ranges("confidence"));
  for (const { name } of absent) {
    for (const gone of [name, name.replace("coverage.", "confidence.")]) {
      const option = $("sort").querySelector(`option[value="${CSS.escape(gone)}"]`);
      if (option && !option.selected) option.remove();
    }
  }
  $("measuring").remove();
  for (const control of controls.slice(first)) control.read(query);
  facets = found;
  showActive();
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
