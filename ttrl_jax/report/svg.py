"""Charts as SVG files of their own, from the same values as the page's. Their colours are the page's, and follow the
reader's light or dark theme as these do."""

import html
import math
from collections.abc import Sequence
from importlib import resources

from ttrl_jax.report.chart import Bars, Chart, Line, thinned

WIDTH, HEIGHT = 480, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 10, 10, 42  # margins around the plot
COLORS = 8  # that the page has
_ROW, _TITLE = 16, 22  # heights of a line of the legend and of a title


def picture(charts: Sequence[Chart | Bars], *, most: int) -> str:
    """Charts side by side as an SVG file, each with its title above and its legend below; of lines with more than
    `most` points, neighbours are averaged. Every chart must have something to draw."""
    keys = [_keys(chart) for chart in charts]
    height, width = _TITLE + HEIGHT + _ROW * max(map(len, keys)) + 6, WIDTH * len(charts)
    body = f'<rect width="{width}" height="{height}" style="fill: var(--back)"/>'
    for i, (chart, key) in enumerate(zip(charts, keys, strict=True)):
        legend = ""
        for j, (name, color, kind) in enumerate(key):
            y = _TITLE + HEIGHT + _ROW * j + 8
            mark = f'<polyline class="k{color % COLORS} {kind}" points="{LEFT},{y} {LEFT + 22},{y}"/>'
            dot = f'<circle class="k{color % COLORS}" cx="{LEFT + 11}" cy="{y}" r="2.5"/>'
            legend += dot if kind == "dots" else mark
            legend += _text(LEFT + 28, y + 4, name, "start")
        caption = f'<text class="title" x="{LEFT}" y="15">{html.escape(chart.title)}</text>'
        parts = _bars(chart) if isinstance(chart, Bars) else _lines(chart, most)
        plot = f'<g transform="translate(0 {_TITLE})">{"".join(parts)}{_axes(chart)}</g>'
        body += f'<g transform="translate({i * WIDTH} 0)">{caption}{plot}{legend}</g>'
    files = resources.files("ttrl_jax.report")
    sheet = "".join(files.joinpath(name).read_text(encoding="utf-8") for name in ("colors.css", "svg.css"))
    size = f'viewBox="0 0 {width} {height}" style="width: {width}px; height: {height}px"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<style>\n{sheet}</style>\n{body}</svg>\n'


def _keys(chart: Chart | Bars) -> list[tuple[str, int, str]]:
    """Name, colour and kind of each entry of the legend."""
    if isinstance(chart, Bars):
        return [(name, i, "") for i, (name, _) in enumerate(chart.series)]
    return list(dict.fromkeys((line.name, line.color, _kind(line)) for line in chart.lines))


def _kind(line: Line) -> str:
    return line.style if line.style in ("bound", "dots") else "dashed" if line.dashed else ""


def _lines(chart: Chart, most: int) -> list[str]:
    """The elements of a chart of lines: ranges below, then lines, then points."""
    x1 = max(1, *(x for line in chart.lines for x, _ in line.points))
    values = [y for line in chart.lines for _, y in line.points]
    values += [y for line in chart.lines for each in line.ranges if each for y in each]
    marks = [0, 0.2, 0.4, 0.6, 0.8, 1.0] if chart.share else ticks(values)
    low, high = marks[0], marks[-1]
    parts = [_grid(marks)]
    for step in sorted({int(x) for x in ticks([0, x1]) if x <= x1}):
        parts.append(_text(_x(step, x1), HEIGHT - BOTTOM + 14, f"{step}", "middle" if step < 0.97 * x1 else "end"))
    for line in chart.lines:
        places = [(_x(x, x1), _y(y, low, high)) for x, y in thinned(line.points, most)]
        parts += _ranges(line, x1, low, high)
        if line.style != "dots" or len(places) > 2:  # between two evaluations nothing was measured
            path = " ".join(f"{x:.1f},{y:.2f}" for x, y in places)
            name = html.escape(line.name)
            kind = f"k{line.color % COLORS} {_kind(line)}".strip()
            parts.append(f'<polyline class="{kind}" data-name="{name}" points="{path}"/>')
        if line.style != "bound" and (line.style == "dots" or len(places) < 12):
            parts += [f'<circle class="k{line.color % COLORS}" cx="{x:.1f}" cy="{y:.2f}" r="2.5"/>' for x, y in places]
    return parts


def _ranges(line: Line, x1: float, low: float, high: float) -> list[str]:
    """The ranges of a line's points: bars of those that stand alone, else a band."""
    known = [(x, each) for (x, _), each in zip(line.points, line.ranges, strict=False) if each]
    if not known:
        return []
    if line.style == "dots":
        return [
            f'<line class="range k{line.color % COLORS}" x1="{_x(x, x1):.1f}" x2="{_x(x, x1):.1f}" '
            f'y1="{_y(a, low, high):.2f}" y2="{_y(b, low, high):.2f}"/>'
            for x, (a, b) in known
        ]
    edge = [(x, b) for x, (_, b) in known] + [(x, a) for x, (a, _) in reversed(known)]
    path = " ".join(f"{_x(x, x1):.1f},{_y(y, low, high):.2f}" for x, y in edge)
    return [f'<polygon class="k{line.color % COLORS}" points="{path}"/>']


def _bars(chart: Bars) -> list[str]:
    marks = [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    parts = [_grid(marks)]
    width = (WIDTH - LEFT - RIGHT) / max(1, len(chart.groups))
    bar = width * 0.8 / len(chart.series)
    for g, group in enumerate(chart.groups):
        begin = LEFT + g * width + width * 0.1
        parts.append(_text(begin + width * 0.4, HEIGHT - BOTTOM + 14, group, "middle"))
        for s, (name, values) in enumerate(chart.series):
            value = values[g]
            if value is not None:
                y = _y(value, 0, 1)
                parts.append(
                    f'<rect class="k{s % COLORS}" x="{begin + s * bar:.1f}" y="{y:.2f}" width="{bar:.1f}" '
                    f'height="{HEIGHT - BOTTOM - y:.2f}"><title>{html.escape(f"{name}, {group}: {value:.3f}")}</title>'
                    "</rect>"
                )
    return parts


def _axes(chart: Chart | Bars) -> str:
    """The names of the axes."""
    middle = TOP + (HEIGHT - TOP - BOTTOM) / 2
    upright = (
        f'<text transform="translate(14 {middle:.0f}) rotate(-90)" text-anchor="middle">{html.escape(chart.y)}</text>'
    )
    return upright + _text(LEFT + (WIDTH - LEFT - RIGHT) / 2, HEIGHT - 8, chart.x, "middle")


def ticks(values: Sequence[float]) -> list[float]:
    """Three to eight round numbers at equal distances, that enclose the values."""
    low, high = min(values), max(values)
    if high - low < 1e-9 * max(1.0, abs(low)):
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = unit * next(x for x in (1, 2, 2.5, 5, 10) if x * unit >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _x(step: float, last: float) -> float:
    return LEFT + step / last * (WIDTH - LEFT - RIGHT)


def _y(value: float, low: float, high: float) -> float:
    return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _grid(marks: Sequence[float]) -> str:
    parts = []
    for mark in marks:
        y = _y(mark, marks[0], marks[-1])
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(LEFT - 5, y + 4, f"{round(mark, 12):.4g}", "end"))
    return "".join(parts)
