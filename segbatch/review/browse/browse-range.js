// A range of a number: a histogram of all images, and a slider with two thumbs under it.
"use strict";

function histogram(bins) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${bins.length} 1`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const most = Math.max(...bins, 1);
  bins.forEach((count, index) => {
    const bar = document.createElementNS(svg.namespaceURI, "rect");
    const height = count && Math.max(count / most, 0.06);
    const box = { x: index + 0.08, y: 1 - height, width: 0.84, height };
    for (const [name, value] of Object.entries(box)) bar.setAttribute(name, value);
    svg.append(bar);
  });
  return svg;
}

// `range` is {low, high, bins, is_cut}. A thumb at its end is no bound. The user's columns, under
// whose names it stands, and formulas have inputs for exact bounds.
function slider(measure, range, color) {
  const show = (value) => format(measure.group, value);
  const isDate = measure.group === "dates";
  const make = (value, which) => element("input", {
    type: "range", min: range.low, max: range.high, step: measure.whole ? 1 : "any", value,
    ariaLabel: `${measure.label} ${which}`,
  });
  const low = make(range.low, "at least");
  const high = make(range.high, "at most");
  const output = element("output");
  const bars = histogram(range.bins);
  const pair = element("div", { className: "pair" }, bars, low, high);
  pair.dataset.measure = measure.name;
  if (color) pair.style.setProperty("--color", color);
  const sign = (text, bound) => range.is_cut && bound === null ? text : "";
  // Bounds are rounded to less than a thousandth of the range.
  const places = Math.min(Math.max(3 - Math.floor(Math.log10(range.high - range.low)), 0), 100);
  let bounds = [null, null];
  const exact = exactInputs(measure, range, (which, bound) => { bounds[which] = bound; draw(); changed(); });

  function draw() {
    const [from, to] = [bounds[0] ?? range.low, bounds[1] ?? range.high];
    const share = (value) => Math.min(Math.max((value - range.low) / (range.high - range.low), 0), 1);
    low.value = from;
    high.value = to;
    pair.style.setProperty("--low", `${100 * share(from)}%`);
    pair.style.setProperty("--high", `${100 * share(to)}%`);
    [...bars.children].forEach((bar, index) => {
      const middle = (index + 0.5) / bars.children.length;
      bar.classList.toggle("out", middle < share(from) || middle > share(to));
    });
    low.setAttribute("aria-valuetext", show(from));
    high.setAttribute("aria-valuetext", show(to));
    const start = sign("≤ ", bounds[0]) + show(from).replace(" %", "");
    output.textContent = `${start} – ${sign("≥ ", bounds[1])}${show(to)}`;
    output.classList.toggle("set", bounds.some((bound) => bound !== null));
    exact.draw(bounds);
  }

  function move(which) {
    const values = [+low.value, +high.value];
    values[which] = which ? Math.max(...values) : Math.min(...values);
    const tidy = (value) => measure.whole || isDate ? Math.round(value) : +value.toFixed(places);
    bounds[which] = values[which] === (which ? range.high : range.low) ? null : tidy(values[which]);
    draw();
    changed();
  }

  low.addEventListener("input", () => move(0));
  high.addEventListener("input", () => move(1));
  controls.push({
    write(into) { if (bounds.some((bound) => bound !== null)) into.ranges[measure.name] = bounds; },
    read(from) { bounds = [...(from.ranges[measure.name] ?? [null, null])]; draw(); },
  });
  draw();
  if (!exact.inputs.length) return filter(measure.label, color, output, pair);
  const inputs = element("div", { className: "inputs" }, ...exact.inputs);
  if (measure.group === "formulas") return filter(measure.label, color, "", pair, inputs);
  return element("div", { className: "filter" }, pair, inputs);
}

// Inputs for exact bounds of the numbers and dates in the user's columns.
function exactInputs(measure, range, set) {
  if (!["columns", "dates", "formulas"].includes(measure.group)) return { inputs: [], draw() {} };
  const isDate = measure.group === "dates";
  const day = (seconds) => isoDate(seconds).slice(0, 10);
  const text = (value) => isDate ? day(value) : number(value);
  const inputs = ["from", "to"].map((which, at) => {
    const input = element("input", {
      type: isDate ? "date" : "number", ariaLabel: `${measure.label} ${which}`,
      placeholder: text(at ? range.high : range.low), ...(isDate ? {} : { step: "any" }),
    });
    input.addEventListener("change", () => {
      const value = isDate ? Date.parse(input.value) / 1000 + (at ? 86_400 - 1e-6 : 0) : exactNumber(input.value);
      set(at, Number.isFinite(+value) ? value : null);
    });
    return input;
  });
  return {
    inputs,
    draw(bounds) {
      inputs.forEach((input, at) => {
        const bound = bounds[at];
        const empty = isDate ? text(at ? range.high : range.low) : "";
        if (input !== document.activeElement) input.value = bound === null ? empty : text(bound);
        input.classList.toggle("set", bound !== null);
      });
    },
  };
}
