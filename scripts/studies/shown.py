"""What is shown of runs: tables as Markdown and CSV, lines and bars, and curves that are means over seeds."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

from ttrl_jax.report import svg
from ttrl_jax.report.chart import Bars, Chart, Line
from ttrl_jax.report.data import Group, metric_at
from ttrl_jax.report.table import spread
from ttrl_jax.run.metrics import write_text
from ttrl_jax.tasks.sets import OWN

from .runs import PARTS

LABELS = {
    "majority": "the vote (TTRL)",
    "offline": "the start model's vote, never renewed",
    "random": "random answers (control)",
    "truth": "true answers (oracle)",
}
ALGORITHMS = {"grpo": "GRPO", "dr_grpo": "Dr. GRPO", "rloo": "RLOO", "ppo": "PPO", "prime": "PRIME"}
TITLES = LABELS | ALGORITHMS
ORACLE = "truth"  # beside algorithms: GRPO with it
POINTS = 36  # of a line in the pictures; the steps between are averaged
NONE = "-"  # what is not known


@dataclass(frozen=True)
class Table:
    """A table of texts."""

    name: str  # of its file
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def csv(self) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.head, *self.rows])
        return text.getvalue()


@dataclass(frozen=True)
class Shown:
    """What a study shows."""

    tables: Sequence[Table]
    pictures: Mapping[str, Sequence[Chart | Bars]]  # file -> charts side by side
    said: Sequence[str] = ()


def write(shown: Shown, name: str, out: Path) -> str:
    """Write OUT/NAME.md, a CSV file of each table and an SVG file of each picture -> the text of the first."""
    text = "".join(f"{table.title}\n\n{table.markdown()}\n" for table in shown.tables)
    text += "".join(f"{line}\n" for line in shown.said)
    write_text(out / f"{name}.md", text)
    for table in shown.tables:
        write_text(out / f"{table.name}.csv", table.csv())
    for file, charts in shown.pictures.items():
        drawn = [chart for chart in charts if isinstance(chart, Bars) or chart.lines]
        if drawn:
            write_text(out / f"{file}.svg", svg.picture(drawn, most=POINTS))
    return text


def mean_curve(group: Group, name: str) -> list[tuple[float, float]]:
    """A metric over the steps that all seeds have: (step, mean)."""
    by_step: dict[int, list[float]] = {}
    for run in group.runs:
        for row in run.rows:
            if name in row:
                by_step.setdefault(row["step"], []).append(row[name])
    return [(step, fmean(values)) for step, values in sorted(by_step.items()) if len(values) == len(group.runs)]


def evaluated(group: Group, task: str, kind: str) -> list[tuple[float, float]]:
    """A number of the evaluations of a task over the steps that all seeds have, such as avg@16 for the kind avg."""
    by_step: dict[int, list[float]] = {}
    for run in group.runs:
        for step, found in run.evaluations.items():
            numbers = found[task] if task in found else {}
            name = metric_at(numbers, kind) or kind
            if name in numbers:
                by_step.setdefault(step, []).append(numbers[name])
    return [(step, fmean(values)) for step, values in sorted(by_step.items()) if len(values) == len(group.runs)]


def chart(name: str, title: str, lines: Mapping[str, Sequence[tuple[float, float]]], **more: str | bool) -> Chart:
    """Lines by their names, those that have points."""
    drawn = [Line(text, i, points) for i, (text, points) in enumerate(lines.items()) if points]
    return Chart(name, title, drawn, **({"y": "share", "share": True} | more))


def end_of(group: Group, task: str, kind: str, which: int) -> list[float]:
    """One number of each seed, of the first (0) or the last (-1) evaluation; a kind such as avg has the greatest k."""
    numbers = group.ends(task)[which]
    return numbers.get(metric_at(numbers, kind) or kind, [])


def algorithms_table(groups: Mapping[str, Group]) -> Table:
    """Of each algorithm and the oracle: avg@k and maj@k at the start and at the end, the share of what the oracle has
    gained, and the seconds of a step, the median over the steps of all seeds."""
    rows, names = [], ("", "")
    tops = {task: groups[ORACLE].ends(task) for task in groups[ORACLE].tasks}
    for arm, group in groups.items():
        steps = [sum(row.get(f"time/{part}", 0.0) for part in PARTS) for run in group.runs for row in run.rows]
        for task in group.tasks:
            first, last = group.ends(task)
            name, vote = names = metric_at(first, "avg"), metric_at(first, "maj")
            before, after, top = fmean(first[name]), fmean(last[name]), fmean(tops[task][1][name])
            cells = [spread(numbers) for numbers in (first[name], first[vote], last[name], last[vote])]
            seconds = f"{median(second for second in steps if second > 0):.2f}" if task == OWN else ""
            rows.append([TITLES[arm], called(task), *cells, gained(before, after, top), seconds])
    head = ["algorithm", "questions", *(f"{name} {when}" for when in ("before", "after") for name in names)]
    return Table("algorithms", "", [*head, "of the oracle's gain", "seconds a step"], rows)


def gained(before: float, after: float, top: float) -> str:
    """The share that a gain has of the oracle's gain."""
    return f"{(after - before) / (top - before):.2f}" if top > before else NONE


def called(task: str) -> str:
    """What a set of questions is called in a table."""
    return "trained on" if task == OWN else task
