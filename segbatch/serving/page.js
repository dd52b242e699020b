"use strict";

const base = document.baseURI;
const status = document.getElementById("status");
const overlay = document.getElementById("overlay");
const drop = document.getElementById("drop");
const input = document.getElementById("file");
let latest = 0; // the last photograph wins over slower answers to earlier ones

for (const place of document.querySelectorAll(".url")) place.textContent = base;

async function predict(file) {
  const number = ++latest;
  status.textContent = `${file.name}: …`;
  try {
    const answer = await fetch("predict", {
      method: "POST",
      body: file,
      headers: { Accept: "image/jpeg", "Content-Type": "application/octet-stream" },
    });
    if (!answer.ok) {
      // Serve's own refusals, when too many wait, are no JSON.
      const error = await answer.json().catch(() => ({ detail: answer.statusText }));
      throw new Error(error.detail);
    }
    const picture = URL.createObjectURL(await answer.blob());
    if (number !== latest) return;
    URL.revokeObjectURL(overlay.src);
    overlay.src = picture;
    overlay.parentElement.hidden = false;
    status.textContent = file.name;
  } catch (error) {
    if (number === latest) status.textContent = `${file.name}: ${error.message}`;
  }
}

input.addEventListener("change", () => input.files.length && predict(input.files[0]));
drop.addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.classList.add("over");
});
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  if (event.dataTransfer.files.length) predict(event.dataTransfer.files[0]);
});
