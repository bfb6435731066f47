"use strict";
// What the parts of the page share. Every text goes in by textContent, so none of it is markup.
const by = id => document.getElementById(id);
const data = JSON.parse(by("data").textContent);
const unique = values => [...new Set(values)];

function piece(tag, text, className) {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

function fill(select, values, wanted) {
  const before = values.includes(wanted) ? wanted : values[0];
  select.replaceChildren(...values.map(value => new Option(value, value, value === before, value === before)));
  select.disabled = values.length < 2;
}

// Each field offers what the entries have that agree with the fields before it. Returns those that agree in all.
function narrow(side, fields, entries, wanted) {
  for (const field of fields) {
    const select = by(side + "-" + field);
    fill(select, unique(entries.map(entry => entry[field])), wanted ? wanted[field] : select.value);
    entries = entries.filter(entry => entry[field] === select.value);
  }
  return entries;
}

// One Tab stop for many things; the arrow keys move among them, along a line and from line to line.
function roam(box, lines) {
  lines.flat().forEach((element, n) => (element.tabIndex = n ? -1 : 0));
  box.addEventListener("keydown", event => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    const from = lines.findIndex(line => line.includes(event.target));
    if (!step || from < 0) return;
    const line = lines[from + step[0]] || [];
    const next = line[Math.min(lines[from].indexOf(event.target) + step[1], step[0] ? line.length - 1 : line.length)];
    if (!next) return;
    event.preventDefault();
    next.focus();
  });
  box.addEventListener("focusin", event => {
    if (!lines.some(line => line.includes(event.target))) return;
    box.querySelector('[tabindex="0"]').tabIndex = -1;
    event.target.tabIndex = 0;
  });
}

// Numbers on hover and on focus. Without this script they are titles, which a keyboard cannot reach.
const tip = by("tip");
let described = null;
function describe(element) {
  described = element;
  tip.hidden = !element;
  if (!element) return;
  tip.textContent = element.dataset.tip;
  element.setAttribute("aria-describedby", "tip");
  const at = element.getBoundingClientRect();
  const above = at.top - tip.offsetHeight - 6;
  tip.style.left = Math.max(4, Math.min(at.left, document.documentElement.clientWidth - tip.offsetWidth - 4)) + "px";
  tip.style.top = (above < 0 ? at.bottom + 6 : above) + "px";
}
for (const kind of ["mouseover", "focusin"]) document.addEventListener(kind, event => describe(event.target.closest("[data-tip]")));
document.addEventListener("focusout", () => describe(null));
document.addEventListener("keydown", event => { if (event.key === "Escape") describe(null); });
document.addEventListener("scroll", () => describe(described), { capture: true, passive: true }); // it stays at what it is about
for (const element of document.querySelectorAll("[title]")) {
  element.dataset.tip = element.title;
  element.removeAttribute("title");
}
for (const text of document.querySelectorAll(".colored")) roam(text, [[...text.children]]);

// Enter or a click takes the reader from a number to the answers in that setting, where there are any.
function leadsToAnswers(element, entry) {
  const cell = answersOf(entry);
  if (!cell) return;
  element.classList.add("answered");
  element.addEventListener("click", () => readAnswers(cell));
  element.addEventListener("keydown", event => { if (event.key === "Enter") readAnswers(cell); });
}
