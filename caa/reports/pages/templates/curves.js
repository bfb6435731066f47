// Mean scores as lines with interval bars: by multiplier, one line for each finetune; by layer, one for each multiplier.
const SHAPES = ["M-5 0A5 5 0 1 0 5 0A5 5 0 1 0 -5 0", "M-4.5-4.5H4.5V4.5H-4.5Z", "M0-6L5.5 4.5H-5.5Z", "M0-6.5L5 0L0 6.5L-5 0Z", "M0 6L5.5-4.5H-5.5Z", "M-6 0L5-5.5V5.5Z"];
const HEIGHT = 300, LEFT = 54, RIGHT = 14, TOP = 10, BOTTOM = 42, INSET = 24;

function drawn(tag, attributes, ...kids) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...kids);
  return made;
}
// Lines differ in color and in marker; a seventh has the first one's color and another marker.
const mark = n => drawn("path", { class: "mark", d: SHAPES[(n + Math.floor(n / 6)) % 6] });
const lineGroup = line => drawn("g", { style: `--color: var(--line-${line.kind % 6})`, class: line.other ? "other" : "own" });
const path = points => drawn("path", { class: "line", d: points.map(([x, y], n) => (n ? "L" : "M") + x + " " + y).join("") });
const label = (text, x, y, attributes) => drawn("text", { x, y, "text-anchor": "middle", ...attributes }, text);
const rising = (entries, field) => [...entries].sort((a, b) => a[field] - b[field]);

// Where values lie in a picture as wide as the box has room for.
function scaled(box, entries, field) {
  const width = Math.max(280, Math.min(box.clientWidth || 600, 760));
  const values = unique(rising(entries, field).map(entry => Number(entry[field])));
  const inner = width - LEFT - RIGHT - 2 * INSET, tall = HEIGHT - TOP - BOTTOM;
  const axis = data.axes[entries[0].task];
  return {
    width, values, axis,
    every: Math.ceil((values.length * 34) / inner),
    x: value => LEFT + INSET + ((value - values[0]) / (values[values.length - 1] - values[0] || 1)) * inner,
    y: value => TOP + tall * (1 - value / axis.most),
  };
}

function frame({ width, values, axis, every, x, y }, field, across) {
  const levels = [0, 0.25, 0.5, 0.75, 1].map(share => share * axis.most);
  const middle = y(axis.most / 2);
  return [
    ...levels.map(level => drawn("line", { class: "axis", x1: LEFT, x2: width - RIGHT, y1: y(level), y2: y(level) })),
    ...levels.map(level => label(String(level), LEFT - 6, y(level) + 4, { "text-anchor": "end" })),
    ...values.filter((_, n) => n % every === 0).map(value =>
      label((field === "multiplier" && value > 0 ? "+" : "") + value, x(value), HEIGHT - 24)),
    label(across, (LEFT + width) / 2, HEIGHT - 6),
    label(axis.label, 10, middle, { transform: `rotate(-90 10 ${middle})` }),
  ];
}

// lines: [{ name, kind (its color and marker), other (not the behavior's own vector), entries, joined (drawn through) }]
function curve(box, lines, by, field, across) {
  const scale = scaled(box, lines.flatMap(line => line.entries), field);
  const kinds = unique(lines.map(line => line.kind)).length;
  const groups = lines.map(line => {
    const aside = line.other ? 0 : (line.kind - (kinds - 1) / 2) * 8; // bars stand beside each other
    const place = entry => [scale.x(Number(entry[field])) + aside, scale.y(entry.mean)];
    const points = rising(line.entries, field).map(entry => point(entry, line, place(entry), scale.y));
    const group = lineGroup(line);
    group.append(path(rising([...line.entries, ...line.joined], field).map(place)), ...points);
    return { other: line.other, group, points };
  });
  const svg = drawn("svg", { viewBox: `0 0 ${scale.width} ${HEIGHT}`, role: "group", "aria-label": `${scale.axis.label} by ${across}` });
  const [own, others] = [false, true].map(other => groups.filter(group => group.other === other));
  svg.append(...frame(scale, field, across), ...[...others, ...own].map(line => line.group)); // own lines lie on top
  roam(svg, [...own, ...others].map(line => line.points));
  box.replaceChildren(svg, legend(lines, by));
}

function point(entry, line, [x, y], height) {
  const says = `${line.name}, layer ${entry.layer}, multiplier ${entry.multiplier}: ${entry.says}`;
  const role = answersOf(entry) ? "button" : "img";
  const made = drawn("g", { transform: `translate(${x} ${y})`, "data-tip": says, "aria-label": says, role });
  if (entry.low !== null) made.append(drawn("line", { class: "bar", x1: 0, x2: 0, y1: height(entry.low) - y, y2: height(entry.high) - y }));
  made.append(drawn("circle", { r: 8, fill: "transparent" }), mark(line.kind));
  leadsToAnswers(made, entry);
  return made;
}

function legend(lines, by) {
  const list = piece("ul", "", "legend");
  list.append(piece("li", by, "dim"));
  const others = lines.filter(line => line.other);
  const once = others.filter((line, n) => others.findIndex(other => other.vector === line.vector) === n);
  for (const line of [...lines.filter(line => !line.other), ...once]) {
    const swatch = lineGroup(line);
    swatch.append(path([[-14, 0], [14, 0]]), mark(line.kind));
    const item = piece("li", "");
    item.append(drawn("svg", { viewBox: "-14 -7 28 14", "aria-hidden": "true" }, swatch), line.other ? line.vector : line.name);
    list.append(item);
  }
  return list;
}

// Other vectors share the point at multiplier 0 with the behavior's own: there nothing is added.
function byFinetune(entries) {
  return unique(entries.map(entry => entry.finetune)).flatMap((finetune, kind) => {
    const here = entries.filter(entry => entry.finetune === finetune);
    const zero = here.filter(entry => Number(entry.multiplier) === 0);
    return unique(here.map(entry => entry.vector)).map(vector => {
      const own = here.filter(entry => entry.vector === vector), other = vector !== "caa";
      return { name: other ? `${finetune}, ${vector}` : finetune, vector, kind, other, entries: own, joined: other ? zero : [] };
    });
  });
}

function byMultiplier(entries) {
  return unique(rising(entries, "multiplier").map(entry => entry.multiplier)).map((multiplier, kind) => {
    const own = entries.filter(entry => entry.multiplier === multiplier);
    return { name: "x " + multiplier, kind, other: false, entries: own, joined: [] };
  });
}

function redraw() {
  const all = narrow("curve", ["behavior", "task", "system"], data.scores.filter(entry => entry.mean !== null));
  const lines = byFinetune(narrow("curve", ["layer"], all));
  const picked = lines.length ? lines[0].entries[0] : {};
  const says = data.sentences.find(sentence => alike(sentence, picked, ["behavior", "task", "system", "layer"]));
  by("curve-says").hidden = !says;
  by("curve-says").textContent = says ? says.text : "";
  const one = unique(all.map(entry => entry.layer)).length < 2;
  by("by-layer").hidden = by("by-layer-of").hidden = one;
  if (lines.length) curve(by("by-multiplier"), lines, "finetune", "multiplier", "multiplier of the vector");
  if (one) return;
  const own = narrow("curve", ["finetune"], all.filter(entry => entry.vector === "caa"));
  curve(by("by-layer"), byMultiplier(own), "multiplier", "layer", "layer (output of block, counted from 0)");
}

for (const field of ["behavior", "task", "system", "layer", "finetune"]) by("curve-" + field).addEventListener("change", redraw);
let drawnWidth = 0;
new ResizeObserver(([{ contentRect }]) => {
  if (contentRect.width !== drawnWidth) redraw();
  drawnWidth = contentRect.width;
}).observe(by("by-multiplier"));
