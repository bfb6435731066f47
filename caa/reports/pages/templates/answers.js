// Two answers to each question beside each other.
const answered = data.texts.cells;
const fields = ["finetune", "layer", "multiplier", "vector", "system"];
const random = name => /^random(-| x)/.test(name);
const alike = (cell, entry, names) => names.every(name => cell[name] === entry[name]);

// The answers of the first random direction stand for the line of all of them.
function answersOf(entry) {
  return answered.find(cell =>
    alike(cell, entry, ["behavior", "finetune", "layer", "multiplier", "system"]) &&
    (cell.vector === entry.vector || (random(cell.vector) && random(entry.vector))));
}

function answer(cell, question, label) {
  const box = document.createElement("div");
  const [text, score] = (cell && cell.answers[question]) || ["(not asked)"];
  box.append(piece("p", label + (score === undefined ? "" : ", score " + (score === null ? "?" : score)), "score"));
  box.append(piece("p", text || "(nothing)", "said"));
  return box;
}

const named = cell => `${cell.finetune} x ${cell.multiplier}` + (cell.vector === "caa" ? "" : `, ${cell.vector}`);

function show(left, right) {
  const questions = unique([left, right].flatMap(cell => Object.keys(cell.answers)));
  const items = questions.map(question => {
    const item = document.createElement("li");
    const pair = document.createElement("div");
    pair.className = "pair";
    pair.append(answer(left, question, named(left)), answer(right, question, named(right)));
    item.append(piece("p", data.texts.questions[question], "asked"), pair);
    return item;
  });
  by("answers").replaceChildren(...items);
  const long = [...by("answers").querySelectorAll(".said")].filter(text => text.scrollHeight > text.clientHeight);
  for (const text of long) text.tabIndex = 0; // a keyboard has to reach what it shall scroll
  by("count").textContent = `${questions.length} questions: ${named(left)} beside ${named(right)}`;
}

function pick(wanted = {}) {
  const cells = answered.filter(cell => cell.behavior === by("behavior").value);
  show(...["a", "b"].map(side => narrow(side, fields, cells, wanted[side])[0]));
}

function unsteered(entry) {
  const names = ["behavior", "finetune", "layer", "system"];
  return answered.find(cell => alike(cell, entry, names) && Number(cell.multiplier) === 0) || entry;
}

function readAnswers(cell) {
  by("behavior").value = cell.behavior;
  pick({ a: unsteered(cell), b: cell });
  location.hash = "said"; // so that the browser's Back leads back
  by("said").querySelector("h2").focus();
}

function restart() {
  const own = answered.filter(cell => cell.behavior === by("behavior").value && cell.vector === "caa");
  const first = own[0] || answered.find(cell => cell.behavior === by("behavior").value);
  const same = own.filter(cell => alike(cell, first, ["finetune", "layer", "system"]));
  const strongest = same.reduce((a, b) => (Number(b.multiplier) > Number(a.multiplier) ? b : a), first);
  pick({ a: unsteered(first), b: strongest });
}

if (answered.length) {
  fill(by("behavior"), unique(answered.map(cell => cell.behavior)), "");
  by("behavior").addEventListener("change", restart);
  for (const side of ["a", "b"])
    for (const field of fields) by(side + "-" + field).addEventListener("change", () => pick());
  restart();
}
for (const table of document.querySelectorAll("table")) {
  table.setAttribute("role", "grid");
  table.parentElement.removeAttribute("tabindex"); // its cells can be reached, and scroll it
  roam(table, [...table.tBodies[0].rows].map(row => [...row.cells].filter(cell => cell.dataset.tip)).filter(line => line.length));
}
for (const cell of document.querySelectorAll("[data-place]")) leadsToAnswers(cell, data.scores[cell.dataset.place]);
