"use strict";
// Texts of models and data sets come in through textContent only.

const byId = (id) => document.getElementById(id);
const LISTED = 50; // questions, until "more"

function make(tag, text, kind) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (kind) element.className = kind;
  return element;
}

// ---------------------------------------------------------------- charts: the values under the pointer

function lineReader(line, [x0, x1, low, high]) {
  const points = line.getAttribute("points").split(" ").map((pair) => pair.split(",").map(Number));
  const box = { left: 46, right: 410, top: 10, bottom: 194 };
  return (x) => {
    let near = points[0];
    for (const point of points) if (Math.abs(point[0] - x) < Math.abs(near[0] - x)) near = point;
    const step = x0 + ((near[0] - box.left) / (box.right - box.left)) * (x1 - x0);
    const value = low + ((box.bottom - near[1]) / (box.bottom - box.top)) * (high - low);
    const shown = line.classList.contains("bound") ? "" : ` (step ${Math.round(step)})`;
    return `${line.dataset.name} ${Number(value.toPrecision(3))}${shown}`;
  };
}

for (const chart of document.querySelectorAll("svg[data-axes]")) {
  const axes = chart.dataset.axes.split(" ").map(Number);
  const readers = [...chart.querySelectorAll("polyline")].map((line) => lineReader(line, axes));
  const readout = chart.parentElement.querySelector(".readout");
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * chart.viewBox.baseVal.width;
    readout.textContent = readers.map((read) => read(x)).join(" · ");
  });
  chart.addEventListener("pointerleave", () => { readout.textContent = ""; });
}

// ---------------------------------------------------------------- questions

const questions = JSON.parse(byId("questions").textContent);
const NO_LABEL = "no label";

function sampleView([response, answer, kind, reward, tokens, truncated, right]) {
  const box = make("div", undefined, "sample");
  const about = [
    kind === null ? "no answer" : `answer ${answer}, class ${kind}`,
    reward === null ? "" : `reward ${Number(reward.toPrecision(3))}`,
    `${tokens} tokens`,
    truncated ? "truncated" : "",
  ];
  const line = make("div", about.filter(Boolean).join(" · "), "about");
  if (right !== null) line.append(make("span", right ? "right" : "wrong", right ? "badge good" : "badge bad"));
  box.append(line, make("pre", response));
  return box;
}

function visitView(visit) {
  const box = make("details");
  const label = visit.label === null ? NO_LABEL : `label ${visit.label}`;
  const percent = (share) => `${(100 * share).toFixed(0)} %`;
  const other = visit.majority === visit.label ? ""
    : `; majority ${visit.majority === null ? "none" : visit.majority}, ${percent(visit.majority_share)}`;
  const head = make("summary", `step ${visit.step}: ${label}, ${percent(visit.share)} of ${visit.votes} votes${other}`);
  if (visit.right !== null) head.append(make("span", visit.right ? "right" : "wrong", visit.right ? "badge good" : "badge bad"));
  box.append(head);
  box.addEventListener("toggle", () => {
    if (!box.open || box.childElementCount > 1) return;
    if (visit.samples.length < visit.votes) box.append(make("p", `${visit.samples.length} of ${visit.votes} generations are in this page.`));
    box.append(...visit.samples.map(sampleView));
  });
  return box;
}

function questionView(question) {
  const box = make("details");
  const head = make("summary", `${question.id}: ${question.question.slice(0, 160)}`);
  if (question.wrong) head.append(make("span", "wrong", "badge bad"));
  if (question.flipped) head.append(make("span", "flipped", "badge"));
  const labels = question.visits.map((visit) => (visit.label === null ? NO_LABEL : visit.label));
  const changes = labels.filter((label, i) => i === 0 || label !== labels[i - 1]);
  const shown = changes.length > 8 ? [...changes.slice(0, 4), "…", ...changes.slice(-3)] : changes;
  head.append(make("div", shown.map((label) => label.slice(0, 60)).join(" → "), "trail"));
  box.append(head);
  box.addEventListener("toggle", () => {
    if (!box.open || box.childElementCount > 1) return;
    const asked = question.prompt === null ? question.question : question.prompt;
    box.append(make("div", question.prompt === null ? "question" : "prompt as the model sees it", "about"));
    box.append(make("pre", asked, "question"));
    if (question.judged) box.append(make("div", `truth ${question.truth}`, "about"));
    box.append(...question.visits.map(visitView));
  });
  return box;
}

function holds(question, text) {
  const has = (value) => value !== null && String(value).toLowerCase().includes(text);
  return has(question.id) || has(question.question) || question.visits.some(
    (visit) => has(visit.label) || has(visit.majority) || visit.samples.some(([response, answer]) => has(response) || has(answer)));
}

function fill(select, names) {
  const before = select.value;
  select.replaceChildren(...names.map((name) => {
    const option = make("option", name);
    option.value = name;
    return option;
  }));
  if (names.includes(before)) select.value = before;
}

let listed = LISTED;

function show() {
  const text = byId("text").value.trim().toLowerCase();
  const here = questions.filter((question) => question.run === byId("run").value && question.set === byId("set").value);
  byId("wrong").disabled = !here.some((question) => question.judged);
  const wrong = byId("wrong").checked && !byId("wrong").disabled;
  const found = here.filter((question) =>
    (!wrong || question.wrong) && (!byId("flipped").checked || question.flipped) && (!text || holds(question, text)));
  byId("count").textContent = `${found.length} of ${here.length} questions`;
  byId("list").replaceChildren(...found.slice(0, listed).map(questionView));
  byId("more").hidden = found.length <= listed;
}

function begin() {
  listed = LISTED;
  show();
}

function sets() {
  const here = questions.filter((question) => question.run === byId("run").value);
  fill(byId("set"), [...new Set(here.map((question) => question.set))]);
  begin();
}

if (questions.length) {
  fill(byId("run"), [...new Set(questions.map((question) => question.run))]);
  byId("run").addEventListener("change", sets);
  for (const id of ["set", "wrong", "flipped"]) byId(id).addEventListener("change", begin);
  byId("text").addEventListener("input", begin);
  byId("more").addEventListener("click", () => { listed += LISTED; show(); });
  sets();
}
