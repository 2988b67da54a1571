"use strict";
// Draws the charts, each when it is first seen open. Names of runs go through `plainName`: plotly reads tags in texts.

const byId = (id) => document.getElementById(id);
const charts = new Map(JSON.parse(byId("charts").textContent).map((chart) => [chart.name, chart]));
const drawn = new Set(); // elements
const narrow = innerWidth < 500;
const plainName = (text) => (narrow && text.length > 40 ? `${text.slice(0, 24)}…${text.slice(-15)}` : text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const lineColor = (i) => color(`c${i % 8}`);

function faint(hex, alpha) {
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  return `rgba(${r},${g},${b},${alpha})`;
}

// Means of neighbours: [x, y, low, high] of each stretch of `width` points, or of the window around each point.
function smoothed(line, width, running) {
  const mean = (values, from, to) => values.slice(from, to).reduce((a, b) => a + b, 0) / (to - from);
  const points = [];
  const half = Math.floor(width / 2);
  for (let i = 0; i < line.x.length; i += running ? 1 : width) {
    const from = running ? Math.max(0, i - half) : i;
    const to = Math.min(line.x.length, running ? i + half + 1 : i + width);
    points.push([running ? line.x[i] : mean(line.x, from, to), mean(line.y, from, to),
      line.low ? mean(line.low, from, to) : null, line.high ? mean(line.high, from, to) : null]);
  }
  return { x: points.map((p) => p[0]), y: points.map((p) => p[1]), low: line.low && points.map((p) => p[2]), high: line.low && points.map((p) => p[3]) };
}

function smoothing(line) {
  const way = byId("smooth") ? byId("smooth").value : "episode";
  if (way === "raw" || line.x.length < 3) return null;
  if (way !== "episode") return [smoothed(line, Number(way), true), `running mean of ${way}`];
  if (line.episode > 1 && line.x.length >= 3 * line.episode) return [smoothed(line, line.episode, false), "mean of an episode"];
  const width = Math.max(3, Math.round(line.x.length / 12));
  return [smoothed(line, width, true), `running mean of ${width}`];
}

function band(line, shade, group) {
  if (!line.low) return [];
  const side = { x: line.x, mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false, legendgroup: group };
  return [{ ...side, y: line.low }, { ...side, y: line.high, fill: "tonexty", fillcolor: faint(shade, 0.18) }];
}

function curveTraces(line, shared, shade) {
  const found = smoothing(line);
  if (!found) return [...band(line, shade, shared.legendgroup), { ...shared, x: line.x, y: line.y, mode: line.x.length < 3 ? "lines+markers" : "lines", line: { color: shade, width: 1.5 } }];
  const [smooth, how] = found;
  const markers = smooth.x.length <= 60 && how.includes("episode");
  return [
    { x: line.x, y: line.y, mode: "lines", line: { color: faint(shade, 0.35), width: 1 }, name: "raw", hoverinfo: "skip", showlegend: false, legendgroup: shared.legendgroup },
    ...band(smooth, shade, shared.legendgroup),
    { ...shared, x: smooth.x, y: smooth.y, mode: markers ? "lines+markers" : "lines", marker: { size: 4, color: shade }, line: { color: shade, width: 2 } },
  ];
}

function traces(chart) {
  return chart.lines.flatMap((line, i) => {
    const shade = lineColor(line.color);
    const shared = { name: plainName(line.name), legendgroup: `${i}`, hovertemplate: "%{y:.4~g}" };
    if (line.style === "curve") return curveTraces(line, shared, shade);
    if (line.style === "bound") return [{ ...shared, x: line.x, y: line.y, mode: "lines", line: { color: shade, width: 1.5, dash: "dash" } }];
    if (line.style === "means") return [...band(line, shade, `${i}`), { ...shared, x: line.x, y: line.y, mode: "lines+markers", marker: { size: 4, color: shade }, line: { color: shade, width: 1.8 } }];
    const dots = { ...shared, x: line.x, y: line.y, mode: line.x.length > 2 ? "lines+markers" : "markers", line: { color: shade, width: 1, dash: "dot" }, marker: { size: 10, color: shade, symbol: line.dashed ? "diamond-open" : "circle", line: { width: 2, color: shade } } };
    if (line.low) dots.error_y = { type: "data", symmetric: false, array: line.high.map((high, j) => high - line.y[j]), arrayminus: line.low.map((low, j) => line.y[j] - low), color: shade, thickness: 1.5, width: 5 };
    return [dots];
  });
}

function barTraces(chart) {
  return chart.series.map(([name, values], i) => ({
    type: "bar", name: plainName(name), x: chart.groups, y: values, marker: { color: lineColor(i) }, hovertemplate: "%{y:.3f}",
  }));
}

function layout(chart, data, box) {
  const named = data.filter((trace) => trace.showlegend !== false);
  const axis = { color: color("soft"), gridcolor: color("line"), zerolinecolor: color("line"), automargin: true, title: { font: { size: 12 }, standoff: 6 } };
  const bars = chart.groups !== undefined;
  const x = { ...axis, title: { ...axis.title, text: chart.x } };
  if (bars) x.type = "category";
  else {
    const last = Math.max(...data.flatMap((trace) => trace.x));
    Object.assign(x, { range: [-0.02 * last - 0.2, 1.02 * last + 0.2], showspikes: true, spikemode: "across", spikethickness: 1, spikecolor: color("soft"), spikedash: "dot", unifiedhovertitle: { text: "step %{x:,d}" }, tickformat: ",d", nticks: 7, ...(last <= 6 ? { dtick: 1 } : {}) });
  }
  const y = { ...axis, title: { ...axis.title, text: chart.y }, exponentformat: "e", nticks: 6 };
  if (bars || chart.share) Object.assign(y, { range: [-0.02, 1.02], dtick: 0.2, tickformat: ".1f" });
  else y.rangemode = data.some((trace) => trace.y.some((value) => value < 0)) ? "normal" : "tozero";
  const longest = Math.max(...named.map((trace) => trace.name.length), 1);
  const columns = Math.max(1, Math.floor(box.clientWidth / (longest * 6.5 + 50)));
  const rows = named.length > 1 ? Math.ceil(named.length / columns) : 0;
  const plot = box.closest(".main") ? 290 : 170;
  return {
    height: plot + 52 + rows * 21, margin: { l: 50, r: 10, t: 8, b: 44 + rows * 21 },
    paper_bgcolor: color("back"), plot_bgcolor: color("back"), font: { color: color("front"), family: "system-ui, sans-serif", size: 12 },
    hovermode: "x unified", hoverlabel: { bgcolor: color("panel"), font: { color: color("front") }, namelength: -1 },
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", barmode: "group",
    showlegend: rows > 0, legend: { orientation: "h", x: 0, xanchor: "left", y: -44 / plot, yanchor: "top", font: { size: 12 } },
    xaxis: x, yaxis: y, modebar: { bgcolor: "rgba(0,0,0,0)", color: color("soft"), activecolor: color("front") },
  };
}

// Plotly would offer to send a chart to its makers' site.
const SETTINGS = { displaylogo: false, showSendToCloud: false, plotlyServerURL: "", modeBarButtonsToRemove: ["sendChartToCloud", "select2d", "lasso2d", "autoScale2d"] };

function draw(box) {
  const chart = charts.get(box.dataset.chart);
  const data = chart.groups === undefined ? traces(chart) : barTraces(chart);
  drawn.add(box);
  return Plotly.react(box, data, layout(chart, data, box), SETTINGS);
}

const redraw = () => drawn.forEach(draw);

const watcher = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) if (isIntersecting && !drawn.has(target)) draw(target);
}, { rootMargin: "300px" });

async function begin() {
  const bytes = Uint8Array.from(atob(byId("plotly").textContent), (letter) => letter.charCodeAt(0));
  const script = document.createElement("script");
  script.textContent = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  document.head.append(script);
  document.querySelectorAll(".plot").forEach((box) => watcher.observe(box));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; redraw(); } });
}

byId("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  redraw();
});
if (byId("smooth")) byId("smooth").addEventListener("change", redraw);
begin().catch((error) => {
  byId("failed").hidden = false;
  byId("failed").append(` (${error.message})`);
});
