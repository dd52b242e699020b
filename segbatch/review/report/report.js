// The switch of the pictures, and the contents, which mark the section in view.
"use strict";

const kinds = ["photo", "mask", "overlay"];
const pictures = document.querySelectorAll("button.picture");

for (const radio of document.querySelectorAll("input[name=show]")) {
  radio.addEventListener("change", () => {
    for (const picture of pictures) picture.dataset.show = radio.value;
  });
}
for (const picture of pictures) {
  picture.addEventListener("click", () => {
    picture.dataset.show = kinds[(kinds.indexOf(picture.dataset.show) + 1) % kinds.length];
  });
}

const inView = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    for (const link of document.querySelectorAll(".contents a")) {
      link.toggleAttribute("aria-current", link.hash === `#${target.id}`);
    }
  }
}, { rootMargin: "-25% 0px -70%" }); // a line in the upper part of the window
for (const section of document.querySelectorAll("main section")) inView.observe(section);
