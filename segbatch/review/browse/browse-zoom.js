// Zoom in the large view: wheel, pinch, double click and keys; dragging moves the zoomed image, and
// without zoom a swipe goes to the next one.
"use strict";

const MOST_ZOOM = 16;
const SWIPE = 60; // pixels
let zoom = { scale: 1, x: 0, y: 0 }; // of every stack, in pixels of its own box
const touching = new Map(); // pointerId → its last event
let swipe = null; // where the only finger came down

const stacks = () => [...document.querySelectorAll("#large .stack")];

function showZoom() {
  const { scale, x, y } = zoom;
  for (const stack of stacks()) stack.style.transform = `translate(${x}px, ${y}px) scale(${scale})`;
  $("zoom-reset").textContent = `${Math.round(100 * zoom.scale)} %`;
  $("large").classList.toggle("zoomed", zoom.scale > 1);
}

function moveTo(x, y, scale) {
  const { offsetWidth: width, offsetHeight: height } = stacks()[0];
  const inside = (at, size) => Math.min(Math.max(at, size * (1 - scale)), 0);
  zoom = { scale, x: inside(x, width), y: inside(y, height) };
  showZoom();
}

// Zooms by a factor, so that the point (x, y) of a stack's box stays where it is.
function zoomBy(factor, x = stacks()[0].offsetWidth / 2, y = stacks()[0].offsetHeight / 2) {
  const scale = Math.min(Math.max(zoom.scale * factor, 1), MOST_ZOOM);
  const by = scale / zoom.scale;
  moveTo(x - by * (x - zoom.x), y - by * (y - zoom.y), scale);
}

function fit() {
  moveTo(0, 0, 1);
}

// Where an event is, in the box of the side under it.
function placeOf({ clientX, clientY }) {
  const boxes = [...document.querySelectorAll("#large .side")].map((side) => side.getBoundingClientRect());
  const { left, top } = boxes.findLast((box) => box.left <= clientX && box.top <= clientY) ?? boxes[0];
  return [clientX - left, clientY - top];
}

function pinch(event) {
  const before = [...touching.values()].map(placeOf);
  touching.set(event.pointerId, event);
  const after = [...touching.values()].map(placeOf);
  const spread = ([[x1, y1], [x2, y2]]) => Math.hypot(x1 - x2, y1 - y2);
  const [x, y] = [0, 1].map((axis) => (after[0][axis] + after[1][axis]) / 2);
  if (spread(before)) zoomBy(spread(after) / spread(before), x, y);
}

function listenZoom() {
  const view = document.querySelector("#large .view");
  view.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoomBy(Math.exp(-event.deltaY / (event.ctrlKey ? 100 : 400)), ...placeOf(event));
  }, { passive: false });
  view.addEventListener("dblclick", (event) => zoom.scale > 1 ? fit() : zoomBy(3, ...placeOf(event)));
  view.addEventListener("pointerdown", (event) => {
    touching.set(event.pointerId, event);
    const isSwipe = touching.size === 1 && event.pointerType === "touch" && zoom.scale === 1;
    swipe = isSwipe ? event : null;
    view.setPointerCapture(event.pointerId);
  });
  view.addEventListener("pointermove", (event) => {
    const last = touching.get(event.pointerId);
    if (!last) return;
    if (touching.size === 2) { pinch(event); return; }
    touching.set(event.pointerId, event);
    const [right, down] = [event.clientX - last.clientX, event.clientY - last.clientY];
    if (zoom.scale > 1) moveTo(zoom.x + right, zoom.y + down, zoom.scale);
  });
  const end = (event) => {
    touching.delete(event.pointerId);
    if (!swipe || event.type !== "pointerup" || zoom.scale > 1) return;
    const [right, down] = [event.clientX - swipe.clientX, event.clientY - swipe.clientY];
    swipe = null;
    if (Math.abs(right) > SWIPE && Math.abs(right) > 2 * Math.abs(down)) step(right < 0 ? 1 : -1);
  };
  view.addEventListener("pointerup", end);
  view.addEventListener("pointercancel", end);
  $("zoom-in").addEventListener("click", () => zoomBy(1.5));
  $("zoom-out").addEventListener("click", () => zoomBy(1 / 1.5));
  $("zoom-reset").addEventListener("click", fit);
}
