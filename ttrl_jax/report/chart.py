"""What a chart shows, whoever draws it: the page's script, or svg.py."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """Values over training steps, or over whatever the axis of the chart is.

    style: curve    a value at every step
           means    means over several steps, at the middle one
           dots     measured at these steps alone, with nothing known between
           bound    one value, across the whole chart
    """

    name: str
    color: int
    points: Sequence[Point]
    style: str = "curve"
    ranges: Sequence[tuple[float, float] | None] = ()  # lowest and highest of each point, as far as known
    dashed: bool = False
    episode: int | None = None  # of a curve: steps of an episode, for means over these


@dataclass(frozen=True)
class Chart:
    """Lines over training steps."""

    name: str  # of a file
    title: str
    lines: Sequence[Line]
    y: str  # what the axis shows, with its unit
    share: bool = False  # whether that is between 0 and 1
    x: str = "training step"
    note: str = ""


@dataclass(frozen=True)
class Bars:
    """Shares, 0 to 1, as bars side by side: for each group one of each series (name, values)."""

    name: str
    title: str
    groups: Sequence[str]
    series: Sequence[tuple[str, Sequence[float | None]]]
    y: str
    x: str = ""
    note: str = ""


def plain(chart: Chart | Bars, *, most: int) -> dict[str, Any]:
    """A chart as JSON-ready values; of lines with more than `most` points the means of neighbours."""
    shared = {"name": chart.name, "title": chart.title, "x": chart.x, "y": chart.y, "note": chart.note}
    if isinstance(chart, Bars):
        values = [[name, [None if x is None else short(x) for x in values]] for name, values in chart.series]
        return shared | {"groups": list(chart.groups), "series": values}
    return shared | {"share": chart.share, "lines": [_plain(line, most) for line in chart.lines]}


def _plain(line: Line, most: int) -> dict[str, Any]:
    points = thinned(line.points, most)
    made = {"name": line.name, "color": line.color, "style": line.style, "dashed": line.dashed}
    made |= {"x": [short(x) for x, _ in points], "y": [short(y) for _, y in points]}
    if any(line.ranges):
        sides = ([(x, y if each is None else each[i]) for (x, y), each in zip(line.points, line.ranges, strict=True)]
                 for i in (0, 1))  # fmt: skip
        made["low"], made["high"] = ([short(y) for _, y in thinned(side, most)] for side in sides)
    if line.episode is not None and len(points) == len(line.points):
        made["episode"] = line.episode
    return made


def short(value: float) -> float | int:
    """The value to five digits, for the page."""
    rounded = float(f"{value:.5g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 2**53 else rounded


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """The points; if there are more than `most`, the means of equal stretches of neighbours."""
    stretch = math.ceil(len(points) / most)
    pieces = [points[i : i + stretch] for i in range(0, len(points), stretch)]
    return [(sum(x for x, _ in piece) / len(piece), sum(y for _, y in piece) / len(piece)) for piece in pieces]
