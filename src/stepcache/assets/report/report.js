// The toolbar's choices are kept in the address, so that a view can be linked to and survives a reload:
// #setting=1&view=slider&worst=1, and &split=30 to set all dividers.
"use strict";

const toolbar = document.querySelector(".toolbar");
const list = document.querySelector(".prompts");
const prompts = [...list.children];
const dividers = [...list.querySelectorAll(".divider")];

function chosen() {
  return Object.fromEntries(new FormData(toolbar)); // worst only if checked
}

function show() {
  const { setting, view, worst } = chosen();
  document.body.dataset.view = view;
  for (const element of list.querySelectorAll("[data-setting]")) {
    element.hidden = element.dataset.setting !== setting;
  }
  const psnr = (prompt) => Number(prompt.dataset.psnr.split(" ")[setting]);
  list.append(...(worst ? [...prompts].sort((a, b) => psnr(a) - psnr(b) || 0) : prompts));
}

function split(divider) {
  divider.parentElement.style.setProperty("--split", `${divider.value}%`);
}

function restore() {
  const asked = new URLSearchParams(location.hash.slice(1));
  for (const input of toolbar.elements) {
    if (input.type === "radio" && asked.get(input.name) === input.value) input.checked = true;
    if (input.type === "checkbox") input.checked = asked.has(input.name);
  }
  for (const divider of dividers) {
    if (asked.has("split")) divider.value = asked.get("split");
    split(divider);
  }
  show();
}

toolbar.addEventListener("submit", (event) => event.preventDefault());
toolbar.addEventListener("change", () => {
  show();
  history.replaceState(null, "", `#${new URLSearchParams(chosen())}`);
});
for (const divider of dividers) divider.addEventListener("input", () => split(divider));
addEventListener("hashchange", restore);
restore();
