"use strict";
// Texts of models and data sets come in through textContent only; formulas as lists of the elements that formulas.py lets through.

const questions = JSON.parse(byId("questions").textContent);
const [pattern, formulas] = JSON.parse(byId("formulas").textContent);
const FORMULA = new RegExp(pattern, "g");
const LISTED = 50; // questions, until "more"
const NONE = "no answer";
const FILTERS = {
  wrong: (q) => q.wrong,
  flipped: (q) => q.flips > 0,
  became_right: (q) => q.became_right,
  became_wrong: (q) => q.became_wrong,
  silent: (q) => q.silent > 0,
  unformed: (q) => q.unformed > 0,
};
const percent = (share) => `${(100 * share).toFixed(0)} %`;
const signed = (share) => `${share < 0 ? "−" : "+"}${Math.abs(100 * share).toFixed(0)}`;
const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

function make(tag, text, kind) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (kind) element.className = kind;
  return element;
}

// ---------------------------------------------------------------- texts with formulas

function mathElement([tag, attributes, ...children]) {
  const element = document.createElementNS("http://www.w3.org/1998/Math/MathML", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.map((child) => (typeof child === "string" ? child : mathElement(child))));
  return element;
}

const known = (source) => byId("math").checked && Object.hasOwn(formulas, source);

function formula(source) {
  const element = mathElement(formulas[source]);
  const box = make("span");
  box.title = source;
  box.append(element);
  return box;
}

function rich(text) { // texts and formulas, for append
  if (known(text)) return [formula(text)];
  const parts = [];
  let end = 0;
  for (const match of text.matchAll(FORMULA)) {
    if (!known(match[0])) continue;
    parts.push(text.slice(end, match.index), formula(match[0]));
    end = match.index + match[0].length;
  }
  return [...parts, text.slice(end)];
}

function filled(tag, text, kind) {
  const element = make(tag, undefined, kind);
  element.append(...rich(text));
  return element;
}

const rightBadge = (right) => (right === null ? [] : [make("span", right ? "right" : "wrong", right ? "badge good" : "badge bad")]);

// ---------------------------------------------------------------- one question

function tokens(spans) {
  const box = make("pre");
  for (const [text, logp] of spans) {
    const part = make("span", text, "token");
    part.title = `log-prob ${logp.toFixed(3)}, probability ${Math.exp(logp).toFixed(3)}`;
    part.style.background = `color-mix(in srgb, var(--bad) ${Math.round(60 * (1 - Math.exp(logp)))}%, transparent)`;
    box.append(part);
  }
  return box;
}

function sampleView([response, answer, , reward, length, truncated, right, formed, spans]) {
  const box = make("div", undefined, "sample");
  const about = [
    reward === null ? "" : `reward ${Number(reward.toPrecision(3))}`,
    plural(length, "token"),
    truncated ? "cut off" : "",
    formed === false ? "out of format" : "",
    answer === null ? NONE : "",
  ];
  const line = make("div", about.filter(Boolean).join(" · "), "about");
  line.append(...rightBadge(right));
  box.append(line, filled("pre", response));
  if (spans) box.append(make("div", "the probability of each token: the redder, the less likely", "about"), tokens(spans));
  return box;
}

function answerView(visit, kind, answer, count, right) {
  const samples = visit.samples.filter((sample) => sample[2] === kind);
  const box = make("details", undefined, "answer");
  const head = make("summary");
  const bar = make("span", undefined, `bar ${right === null ? (answer !== null && answer === visit.label ? "label" : "") : right ? "good" : "bad"}`);
  bar.style.width = `${(100 * count) / visit.votes}%`;
  const track = make("span");
  track.append(bar);
  const about = make("span", `${count}`);
  if (answer !== null && answer === visit.label) about.append(make("span", "label", "badge"));
  about.append(...rightBadge(right));
  const text = answer === null ? make("span", NONE, "text about") : filled("span", answer, "text");
  if (answer !== null) text.title = answer;
  head.append(text, track, about);
  box.append(head);
  opened(box, () => [
    ...(samples.length < count ? [make("p", `${samples.length} of ${plural(count, "generation")} are in this page.`)] : []),
    ...samples.map(sampleView),
  ]);
  return box;
}

function opened(box, content) { // fill a details element when it is first opened
  const fill = () => { if (box.open && box.childElementCount === 1) box.append(...content()); };
  box.addEventListener("toggle", fill);
}

function visitView(visit) {
  const box = make("details", undefined, "visit");
  const label = visit.label === null ? "no label" : `label ${visit.label.slice(0, 80)}`;
  const other = visit.majority === visit.label ? ""
    : `; majority ${visit.majority === null ? "none" : visit.majority.slice(0, 80)}, ${percent(visit.majority_share)}`;
  const hits = visit.hit_ratio === null ? "" : `; hit ratio ${percent(visit.hit_ratio)}`;
  const head = make("summary", `step ${visit.step}: ${label}, ${percent(visit.share)} of ${plural(visit.votes, "vote")}${other}${hits}`);
  head.append(...rightBadge(visit.right));
  box.append(head);
  opened(box, () => {
    const rows = visit.ballot.map(([kind, answer, count, right]) => answerView(visit, kind, answer, count, right));
    if (visit.no_answer) rows.push(answerView(visit, null, null, visit.no_answer, null));
    const [answers, votes] = visit.others;
    if (answers) rows.push(make("p", `${plural(answers, "more answer")} with ${plural(votes, "vote")} together.`));
    return rows;
  });
  return box;
}

function strip(history, kind) { // a bar for each visit: the share of its majority
  const box = make("div", undefined, `strip ${kind}`);
  const every = Math.ceil(history.length / 120);
  for (const [step, label, share, right, flipped] of history.filter((_, i) => i % every === 0)) {
    const bar = make("i", undefined, `${right === null ? "" : right ? "good" : "bad"}${flipped ? " flipped" : ""}`);
    bar.style.height = `${Math.max(4, 100 * share)}%`;
    bar.title = `step ${step}: ${label === null ? "nobody answered" : label.slice(0, 60)}, ${percent(share)}${right === null ? "" : right ? ", right" : ", wrong"}${flipped ? ", flipped" : ""}`;
    box.append(bar);
  }
  return box;
}

const linkTo = (values) => `#${new URLSearchParams(values)}`;

function headOf(question) {
  const head = make("span", undefined, "head");
  const asked = make("span", undefined, "asked");
  asked.append(make("b", `${question.id} `), ...rich(question.question));
  const labels = question.history.map(([, label]) => (label === null ? "no label" : label.slice(0, 60)));
  const changes = labels.filter((label, i) => i === 0 || label !== labels[i - 1]);
  const shown = changes.length > 8 ? [...changes.slice(0, 4), "…", ...changes.slice(-3)] : changes;
  const trail = make("span", "majority: ", "trail");
  trail.append(...shown.flatMap((label, i) => [...(i ? [" → "] : []), ...rich(label)]));
  const badges = [["wrong", question.wrong, "bad"], ["became wrong", question.became_wrong, "bad"], ["became right", question.became_right, "good"],
    [plural(question.flips, "flip"), question.flips > 0, ""], [`${question.silent} without an answer`, question.silent > 0, ""], [`${question.unformed} out of format`, question.unformed > 0, ""]];
  for (const [text, holds, kind] of badges) if (holds) trail.append(make("span", text, `badge ${kind}`));
  const change = question.history.length > 1 ? ` (${signed(question.change)})` : "";
  head.append(asked, strip(question.history, ""), trail, make("span", `${percent(question.share)}${change} of the votes`, "numbers"));
  return head;
}

function questionView(question) {
  const box = make("details");
  const head = make("summary");
  head.append(headOf(question));
  box.append(head);
  opened(box, () => {
    const link = make("a", "link to this question");
    link.href = linkTo({ run: question.run, set: question.set, id: question.id });
    const about = make("div", question.prompt === null ? "question · " : "prompt as the model sees it · ", "about");
    about.append(link);
    const parts = [about, filled("pre", question.prompt === null ? question.question : question.prompt, "question")];
    if (question.judged) {
      const truth = make("div", "truth ", "about");
      truth.append(...(question.truth === null ? ["none"] : rich(`${question.truth}`)));
      parts.push(truth);
    }
    const visits = question.visits.map(visitView);
    if (visits.length) visits[visits.length - 1].open = true;
    else visits.push(make("p", "No step of training wrote down the responses to this question."));
    if (question.history.length > 2) {
      parts.push(make("div", `the majority's share of the votes at each of ${plural(question.history.length, "visit")}`, "about"), strip(question.history, "tall"));
    }
    return [...parts, ...visits];
  });
  return box;
}

// ---------------------------------------------------------------- the list

function holds(question, text) {
  const has = (value) => value !== null && String(value).toLowerCase().includes(text);
  return has(question.id) || has(question.question) || question.history.some(([, label]) => has(label)) || question.visits.some(
    (visit) => has(visit.label) || visit.ballot.some(([, answer]) => has(answer)) || visit.samples.some(([response]) => has(response)));
}

function options(select, names) {
  const before = select.value;
  select.replaceChildren(...names.map((name) => {
    const option = make("option", name === "data" ? "trained on, evaluated (data)" : name);
    option.value = name;
    return option;
  }));
  if (names.includes(before)) select.value = before;
}

let listed = LISTED;
let only = null; // id of the one question that a link shows
let views = new Map(); // question -> its element, so that what is open stays open

const here = () => questions.filter((question) => question.run === byId("run").value && question.set === byId("set").value);

function sorted(found) {
  const by = byId("sort").value;
  const sign = byId("order").dataset.down ? -1 : 1;
  if (by === "order") return sign < 0 ? [...found].reverse() : found;
  return [...found].sort((a, b) => sign * (a[by] - b[by]));
}

function show() {
  const text = byId("text").value.trim().toLowerCase();
  const all = here();
  for (const [name, test] of Object.entries(FILTERS)) {
    const count = all.filter(test).length;
    byId(name).disabled = count === 0 && !byId(name).checked;
    byId(`${name}_count`).textContent = count;
  }
  const active = Object.keys(FILTERS).filter((name) => byId(name).checked);
  const found = sorted(all.filter((question) =>
    (only === null || question.id === only) && active.every((name) => FILTERS[name](question)) && (!text || holds(question, text))));
  byId("count").textContent = `${found.length} of ${plural(all.length, "question")}`;
  byId("all").hidden = only === null;
  const state = { run: byId("run").value, set: byId("set").value, sort: byId("sort").value, down: byId("order").dataset.down || "", only: active.join(","), text: byId("text").value, id: only || "" };
  byId("view").href = linkTo(Object.fromEntries(Object.entries(state).filter(([, value]) => value)));
  byId("list").replaceChildren(...found.slice(0, listed).map((question) => {
    if (!views.has(question)) views.set(question, questionView(question));
    return views.get(question);
  }));
  byId("more").hidden = found.length <= listed;
}

function restart() {
  listed = LISTED;
  show();
}

function sets() {
  options(byId("set"), [...new Set(questions.filter((question) => question.run === byId("run").value).map((question) => question.set))]);
  only = null;
  restart();
}

function follow() { // a link: #run=...&set=...&id=...
  if (!location.hash.includes("=")) return;
  const asked = new URLSearchParams(location.hash.slice(1));
  const choose = (id, name) => { if ([...byId(id).options].some((option) => option.value === asked.get(name))) byId(id).value = asked.get(name); };
  choose("run", "run");
  sets();
  choose("set", "set");
  byId("sort").value = "order";
  choose("sort", "sort");
  byId("order").dataset.down = asked.get("down") || "";
  byId("text").value = asked.get("text") || "";
  const active = (asked.get("only") || "").split(",");
  for (const name of Object.keys(FILTERS)) byId(name).checked = active.includes(name);
  only = asked.get("id");
  restart();
  if (only !== null && byId("list").firstElementChild) byId("list").firstElementChild.open = true;
  byId("browser").scrollIntoView();
}

if (questions.length) {
  options(byId("run"), [...new Set(questions.map((question) => question.run))]);
  byId("run").addEventListener("change", sets);
  byId("set").addEventListener("change", () => { only = null; restart(); });
  for (const id of ["sort", ...Object.keys(FILTERS)]) byId(id).addEventListener("change", restart);
  byId("order").addEventListener("click", () => { byId("order").dataset.down = byId("order").dataset.down ? "" : "1"; restart(); });
  byId("text").addEventListener("input", restart);
  byId("math").addEventListener("change", () => { views = new Map(); show(); });
  byId("all").addEventListener("click", () => { only = null; restart(); });
  byId("more").addEventListener("click", () => { listed += LISTED; show(); });
  addEventListener("hashchange", follow);
  sets();
  follow();
}
