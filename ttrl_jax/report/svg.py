"""Line and bar charts as SVG. Colours are the page's (--c0, --c1, ...), so that they follow its light or dark theme."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 420, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 26  # margins around the plot
COLORS = 8  # that the page has


@dataclass(frozen=True)
class Line:
    """A line through points (step, value), or across the whole chart if it is a bound."""

    name: str
    color: int
    points: Sequence[tuple[float, float]]
    style: str = ""  # "", "dashed" or "bound"
    key: str = ""  # in the legend, once for all lines that share it with colour and style; empty: the name


def lines(title: str, drawn: Sequence[Line], *, most: int) -> str:
    """A chart of lines over training steps, at most `most` points each, with a legend; "" if there is nothing to draw.

    Of more points, neighbours are averaged. The element tells its axes in data-axes (first and last step, lowest and
    highest value), from which the page's script reads values back under the pointer.
    """
    drawn = [line for line in drawn if line.points]
    if not drawn:
        return ""
    parts, axes = _plot(drawn, most)
    return _figure(title, parts, _legend(drawn), axes)


def picture(charts: Sequence[tuple[str, Sequence[Line]]], style: str, *, most: int) -> str:
    """Charts of lines (title, lines) side by side as an SVG file of its own, in the colours of the style sheet `style`.

    Each has its title above and its legend below. Every chart must have something to draw.
    """
    top, row = 22, 16  # heights of a title and of a line of the legend
    height = top + HEIGHT + row * max(len(_legend(drawn)) for _, drawn in charts) + 6
    width = WIDTH * len(charts)
    body = f'<rect width="{width}" height="{height}" style="fill: var(--back)"/>'
    for i, (title, drawn) in enumerate(charts):
        parts, _ = _plot(drawn, most)
        keys = ""
        for j, (name, color, kind) in enumerate(_legend(drawn)):
            y = top + HEIGHT + row * j + 8
            keys += f'<polyline class="k{color % COLORS} {kind}" points="{LEFT},{y} {LEFT + 22},{y}"/>'
            keys += _text(LEFT + 28, y + 4, name, "start")
        caption = f'<text class="title" x="{LEFT}" y="15">{html.escape(title)}</text>'
        plot = f'<g transform="translate(0 {top})">{"".join(parts)}</g>'
        body += f'<g transform="translate({i * WIDTH} 0)">{caption}{plot}{keys}</g>'
    sheet = style + "svg text.title { font: 600 13px system-ui, sans-serif; fill: var(--front); }\n"
    sheet += "svg text { font-family: system-ui, sans-serif; }\n"
    size = f'viewBox="0 0 {width} {height}" style="width: {width}px; height: {height}px"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<style>\n{sheet}</style>\n{body}</svg>\n'


def _legend(drawn: Sequence[Line]) -> list[tuple[str, int, str]]:
    return list(dict.fromkeys((line.key or line.name, line.color, line.style) for line in drawn))


def _plot(drawn: Sequence[Line], most: int) -> tuple[list[str], str]:
    """The elements of a chart of lines, and its axes for `_figure`."""
    x1 = max(1, *(x for line in drawn for x, _ in line.points))
    marks = ticks([y for line in drawn for _, y in line.points])
    low, high = marks[0], marks[-1]
    parts = [_grid(marks)]
    for step in (0, x1 // 2, x1):
        anchor = "start" if step == 0 else "end" if step == x1 else "middle"
        parts.append(_text(_x(step, x1), HEIGHT - 8, f"{step:g}", anchor))
    for line in drawn:
        points = [(0.0, line.points[0][1]), (x1, line.points[0][1])] if line.style == "bound" else line.points
        places = [(_x(x, x1), _y(y, low, high)) for x, y in thinned(points, most)]
        path = " ".join(f"{x:.1f},{y:.2f}" for x, y in places)
        kind = f"k{line.color % COLORS} {line.style}".strip()
        parts.append(f'<polyline class="{kind}" data-name="{html.escape(line.name)}" points="{path}"/>')
        if len(places) < 12 and line.style != "bound":
            parts += [f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.2f}" r="2.5"/>' for x, y in places]
    axes = f"0 {x1:g} {low!r} {high!r}"
    return parts, axes


def bars(title: str, groups: Sequence[str], series: Sequence[tuple[str, Sequence[float | None]]]) -> str:
    """A chart of shares, 0 to 1, as bars side by side: for each group one of each series (name, values)."""
    marks = [0.0, 0.25, 0.5, 0.75, 1.0]
    parts = [_grid(marks)]
    width = (WIDTH - LEFT - RIGHT) / max(1, len(groups))
    bar = width * 0.8 / len(series)
    for g, group in enumerate(groups):
        begin = LEFT + g * width + width * 0.1
        parts.append(_text(begin + width * 0.4, HEIGHT - 8, group, "middle"))
        for s, (name, values) in enumerate(series):
            value = values[g]
            if value is not None:
                y = _y(value, 0, 1)
                parts.append(
                    f'<rect class="k{s}" x="{begin + s * bar:.1f}" y="{y:.2f}" width="{bar:.1f}" '
                    f'height="{HEIGHT - BOTTOM - y:.2f}"><title>{html.escape(f"{name}, {group}: {value:.3f}")}</title>'
                    "</rect>"
                )
    return _figure(title, parts, [(name, s, "") for s, (name, _) in enumerate(series)], "")


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """The points; if there are more than `most`, the means of equal stretches of neighbours."""
    stretch = math.ceil(len(points) / most)
    pieces = [points[i : i + stretch] for i in range(0, len(points), stretch)]
    return [(sum(x for x, _ in piece) / len(piece), sum(y for _, y in piece) / len(piece)) for piece in pieces]


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


def _figure(title: str, parts: Sequence[str], legend: Sequence[tuple[str, int, str]], axes: str) -> str:
    keys = "".join(
        f'<span class="key"><i class="k{color % COLORS} {style}"></i>{html.escape(name)}</span>'
        for name, color, style in legend
    )
    data = f' data-axes="{axes}"' if axes else ""
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}"{data}>{"".join(parts)}</svg>'
        f'<div class="legend">{keys}</div><div class="readout"></div></figure>'
    )
