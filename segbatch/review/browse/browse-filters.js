// The filters: a control for each number, text column and kind of the run.
"use strict";

function fieldset(title, ...children) {
  const made = element("fieldset", {}, element("legend", { textContent: title }), ...children);
  $("filters").querySelector("form").append(made);
}

function filter(name, color, output, ...inputs) {
  const label = element("span", { className: "name", title: name }, ...(color ? [swatch(color)] : []), name);
  return element("div", { className: "filter" }, label, output, ...inputs);
}

function sliders(measure, color) {
  const make = (value, which) => element("input", {
    type: "range", min: 0, max: 100, step: 0.5, value, ariaLabel: `${measure.label} ${which}`,
  });
  const [low, high] = [make(0, "at least"), make(100, "at most")];
  const output = element("output");
  const pair = element("div", { className: "pair" }, low, high);
  pair.dataset.measure = measure.name;
  const show = () => {
    pair.style.setProperty("--low", `${low.value}%`);
    pair.style.setProperty("--high", `${high.value}%`);
    output.textContent = +low.value || +high.value < 100 ? `${low.value}–${high.value} %` : "";
  };
  low.addEventListener("input", () => { low.value = Math.min(low.value, high.value); show(); changed(); });
  high.addEventListener("input", () => { high.value = Math.max(low.value, high.value); show(); changed(); });
  controls.push({
    write(into) {
      const bounds = [+low.value ? low.value / 100 : null, +high.value < 100 ? high.value / 100 : null];
      if (bounds.some((bound) => bound !== null)) into.ranges[measure.name] = bounds;
    },
    reset() { low.value = 0; high.value = 100; show(); },
  });
  return filter(measure.label, color, output, pair);
}

function bounds(measure) {
  const inputs = ["min", "max"].map((which) => element("input", {
    type: "number", step: "any", placeholder: which, ariaLabel: `${measure.label} ${which}`,
  }));
  inputs.forEach((input) => input.addEventListener("input", changed));
  controls.push({
    write(into) {
      const given = inputs.map((input) => input.value === "" ? null : +input.value);
      if (given.some((bound) => bound !== null)) into.ranges[measure.name] = given;
    },
    reset() { inputs.forEach((input) => { input.value = ""; }); },
  });
  return filter(measure.label, null, "", element("div", { className: "inputs" }, ...inputs));
}

function part(name) {
  const input = element("input", { type: "search", placeholder: "contains", ariaLabel: `${name} contains` });
  input.addEventListener("input", changed);
  controls.push({
    write(into) { if (input.value) into.texts[name] = input.value; },
    reset() { input.value = ""; },
  });
  return filter(name, null, "", element("div", { className: "inputs" }, input));
}

function kinds(counts) {
  const boxes = Object.entries(counts).map(([kind, count]) => {
    const box = element("input", { type: "checkbox", checked: true, value: kind });
    box.addEventListener("change", changed);
    return [box, element("label", { className: "kind" }, box, kind,
      element("span", { className: "count", textContent: count.toLocaleString("en") }))];
  });
  controls.push({
    write(into) {
      const checked = boxes.map(([box]) => box).filter((box) => box.checked);
      if (checked.length < boxes.length) into.kinds = checked.map((box) => box.value);
    },
    reset() { boxes.forEach(([box]) => { box.checked = true; }); },
  });
  return boxes.map(([, label]) => label);
}

function makeFilters() {
  const of = (group) => run.measures.filter((measure) => measure.group === group);
  const colors = Object.fromEntries(run.classes.map((c) => [c.field, c.color]));
  const color = (measure) => colors[measure.name.slice(measure.group.length + 1)];
  const add = (title, group, make) => {
    const filters = of(group).map((measure) => make(measure, color(measure)));
    if (filters.length) fieldset(title, ...filters);
  };
  fieldset("Status", ...kinds(run.kinds));
  add("Coverage", "coverage", sliders);
  add("Uncertainty", "uncertainty", sliders);
  add("Formulas", "formulas", bounds);
  add("Columns", "columns", bounds);
  fieldset("Texts", ...run.texts.map(part));
  add("Confidence", "confidence", sliders);
  $("condition").placeholder = `coverage.${run.classes.at(-1).field} > 0.2`;
  controls.push({
    write(into) { into.condition = $("condition").value; },
    reset() { $("condition").value = ""; },
  });

  const choices = [{ name: "image_id", label: "image_id" }, ...run.measures.filter((m) => m.group !== "confidence")];
  for (const { name, label, group } of choices) {
    const text = group === "coverage" ? `${label} (share)` : label;
    $("sort").append(element("option", { value: name, textContent: text }));
  }
}
