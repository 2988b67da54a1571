"""The page: what was read of the runs, as one HTML file.

Charts are SVG made here, not by a plotting library in the page: they need only lines and bars, follow the theme through
CSS, and are a few kB where such a library is more than half of the 8 MB that the file may have.

Texts of models and data sets stand in the page only as JSON, which its script shows as text, never as HTML.
"""

import html
from collections.abc import Sequence
from importlib import resources
from statistics import fmean
from typing import Any

from ttrl_jax.report import rollouts, svg
from ttrl_jax.report.data import Group, Run, by_seed, choices, ends, metric_at
from ttrl_jax.report.svg import Line
from ttrl_jax.run.diagnosis import diagnose
from ttrl_jax.tasks.sets import OWN

CURVES = {
    "Reward, mean of the trained samples": "vote/rewards/mean",
    "Label accuracy": "audit/label_accuracy",
    "Reward accuracy": "audit/reward_accuracy",
    "Majority ratio": "vote/majority_ratio",
    "Vote entropy, nats": "vote/vote_entropy",
    "Labels that flipped since the last visit": "vote/flip_rate",
    "Response length, tokens": "length/response_mean",
    "Truncated responses": "length/truncation_rate",
    "KL from the start": "update/kl",
    "Gradient norm": "update/grad_norm",
    "Entropy of the next token, nats": "update/entropy",
}
_POINTS = 4_000  # of a chart's lines together


def page(runs: Sequence[Run], questions: Sequence[rollouts.Question]) -> str:
    """The report as HTML. Questions as `read_questions` returns them; they are thinned out to fit 8 MB."""
    shown, notes = rollouts.fit(questions)
    title = "TTRL: " + ", ".join(group.title for group in by_seed(runs))
    assets = resources.files("ttrl_jax.report")
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{html.escape(title)}</title>",
            f"<style>\n{assets.joinpath('page.css').read_text(encoding='utf-8')}</style>\n</head>\n<body>",
            f"<h1>{html.escape(title)}</h1>",
            *[f'<p class="note">{html.escape(f"{run.name}: {note}")}</p>' for run in runs for note in run.notes],
            section(
                "Diagnosis",
                "What the metrics say that need no truth: votes, lengths and updates of the training steps so far.",
                "".join(diagnosis(run) for run in runs),
            ),
            *(section(*each) for each in _sections(runs)),
            _browser(shown, notes),
            section("Settings", "Those in which the runs differ are marked.", settings_table(runs)),
            f'<script type="application/json" id="questions">{rollouts.embed(shown)}</script>',
            f"<script>\n{assets.joinpath('page.js').read_text(encoding='utf-8')}</script>\n</body>\n</html>\n",
        ]
    )


def _sections(runs: Sequence[Run]) -> list[tuple[str, str, str]]:
    most, groups = max(50, min(500, _POINTS // len(runs))), by_seed(runs)
    return [
        (
            "Before and after",
            "The first and the last evaluation of each run, never the best. Truths are used to measure, nothing else. "
            "Runs that differ in their seed alone are put together: their mean, with the lowest and the highest.",
            results_table(groups),
        ),
        (
            "Evaluations",
            "avg@k: share of right samples; maj@k: chance that their vote is right. The bounds: the vote of the start "
            "model, which a model that learns from its votes may pass, and where the run with true labels ended.",
            grid(evaluation_charts(groups, most)),
        ),
        (
            "Checkpoints",
            "Last is the result. Chosen has the highest majority ratio of all evaluations on the run's own questions, "
            "of equal ones the earliest: no label is needed for that. Best has the highest avg@k there, which takes "
            "true answers to know.",
            choices_table(runs),
        ),
        ("Training", "Every step, of its own questions.", grid(training_charts(groups, most))),
        ("Votes and samples", "Before and after, by the number of samples.", grid(bar_charts(groups))),
    ]


def diagnosis(run: Run) -> str:
    """The verdict on a run and its reasons, as a paragraph."""
    found = diagnose(run.rows)
    said = f"{run.name}: {found.verdict}."
    return f"<p><strong>{html.escape(said)}</strong> {html.escape(found.text)}</p>"


def section(title: str, text: str, body: str) -> str:
    """A part of the page; body is HTML."""
    body = body or '<p class="note">There is nothing to show here.</p>'
    return f"<section><h2>{html.escape(title)}</h2><p>{html.escape(text)}</p>{body}</section>"


def grid(figures: Sequence[str]) -> str:
    """Figures side by side, as many as fit."""
    drawn = [figure for figure in figures if figure]
    return f'<div class="grid">{"".join(drawn)}</div>' if drawn else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], marked: Sequence[bool] = ()) -> str:
    """A table of texts; "" without rows."""
    if not rows:
        return ""
    cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = ""
    for i, row in enumerate(rows):
        mark = ' class="mark"' if marked and marked[i] else ""
        body += f"<tr{mark}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
    return f'<div class="wide"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


def _tasks(groups: Sequence[Group]) -> list[str]:
    return list(dict.fromkeys(task for group in groups for task in group.tasks))


def _name(task: str) -> str:
    return "trained on" if task == OWN else task


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def spread(values: Sequence[float]) -> str:
    """One value, or the mean of several with the lowest and the highest; "-" without any."""
    if len(values) < 2:
        return _shown(values[0] if values else None)
    return f"{fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def results_table(groups: Sequence[Group]) -> str:
    """First and last evaluation of every task, and the difference of their means."""
    head, rows = ["questions", "metric"], []
    for group in groups:
        head += [f"{group.title}: before", "after", "change"]
    for task in _tasks(groups):
        pairs = [group.ends(task) for group in groups]
        names = dict.fromkeys(name for pair in pairs for numbers in pair for name in numbers)
        for name in sorted(names, key=lambda name: not name.startswith("avg@")):
            row = [_name(task), name]
            for first, last in pairs:
                before, after = first.get(name, []), last.get(name, [])
                row += [spread(before), spread(after)]
                row.append(f"{fmean(after) - fmean(before):+.3f}" if before and after else "-")
            rows.append(row)
    return table(head, rows)


def choices_table(runs: Sequence[Run]) -> str:
    """The evaluations that `choices` picks, with the main numbers of every task."""
    tasks, rows = list(dict.fromkeys(task for run in runs for task in run.tasks)), []
    kinds = ("avg", "maj", "majority_ratio")
    for run in runs:
        for title, step in choices(run).items():
            row = [run.name, title, str(step)]
            for task in tasks:
                numbers = run.evaluations[step].get(task, {})
                row += [_shown(numbers.get(metric_at(numbers, kind) or kind)) for kind in kinds]
            rows.append(row)
    head = ["run", "checkpoint", "step"]
    head += [f"{_name(task)}: {kind}" for task in tasks for kind in ("avg@k", "maj@k", "majority ratio")]
    return table(head, rows)


def training_charts(groups: Sequence[Group], most: int) -> list[str]:
    """One chart for each of CURVES that some run has: a line for each run, in the colour of its group."""
    return [
        svg.lines(
            title,
            [
                Line(run.name, i, [(row["step"], row[name]) for row in run.rows if name in row], key=group.title)
                for i, group in enumerate(groups)
                for run in group.runs
            ],
            most=most,
        )
        for title, name in CURVES.items()
    ]


def evaluation_charts(groups: Sequence[Group], most: int) -> list[str]:
    """For each task avg@k and maj@k of every run, with the bounds."""
    charts = []
    for task in _tasks(groups):
        drawn, bounds = [], set()
        for i, group in enumerate(groups):
            drawn += [line for run in group.runs for line in _accuracy(run, i, group.title, task)]
            first, last = group.ends(task)
            vote, reached = metric_at(first, "maj"), metric_at(last, "avg")
            begins = all(0 in run.evaluations for run in group.runs)
            if begins and vote and (vote, height := fmean(first[vote])) not in bounds:
                bounds.add((vote, height))
                drawn.append(Line(f"{vote} of the start model ({group.title})", i, [(0, height)], "bound"))
            if reached and any(run.oracle for run in group.runs):
                bound = (0, fmean(last[reached]))
                drawn.append(Line(f"{reached} at the end of {group.title}", i, [bound], "bound"))
        charts.append(svg.lines(f"Accuracy, {_name(task)}", drawn, most=most))
    return charts


def _accuracy(run: Run, color: int, title: str, task: str) -> list[Line]:
    """avg@k and maj@k of one run over its evaluations of a task."""
    steps, found = ends(run, task), []
    for kind, style in (("avg", ""), ("maj", "dashed")):
        name = metric_at(run.evaluations[steps[0]][task], kind) if steps else None
        if name is not None:
            evaluated = ((step, each.get(task, {})) for step, each in sorted(run.evaluations.items()))
            points = [(step, numbers[name]) for step, numbers in evaluated if name in numbers]
            found.append(Line(f"{run.name}: {name}", color, points, style, key=f"{title}: {name}"))
    return found


def bar_charts(groups: Sequence[Group]) -> list[str]:
    """pass@k and maj@k over k, before and after, of each group and task; the mean of several seeds."""
    charts = []
    for group in groups:
        for task in group.tasks:
            sets = group.ends(task)
            for kind in ("pass", "maj"):
                names = [name for name in dict.fromkeys(name for each in sets for name in each) if _is(name, kind)]
                names.sort(key=lambda name: int(name.split("@")[1]))
                series = [
                    (title, [fmean(numbers[name]) if name in numbers else None for name in names])
                    for title, numbers in zip(("before", "after"), sets, strict=True)
                ]
                if names:
                    charts.append(svg.bars(f"{kind}@k, {_name(task)}, {group.title}", names, series))
    return charts


def _is(name: str, kind: str) -> bool:
    return name.startswith(f"{kind}@") and name.split("@")[1].isdecimal()


def settings_table(runs: Sequence[Run]) -> str:
    """Every setting of every run."""
    names = sorted(dict.fromkeys(name for run in runs for name in run.settings))
    values: list[list[Any]] = [[str(run.settings.get(name, "-")) for run in runs] for name in names]
    rows = [[name, *row] for name, row in zip(names, values, strict=True)]
    inner = table(["setting", *(run.name for run in runs)], rows, [len(set(row)) > 1 for row in values])
    return f"<details><summary>{len(rows)} settings</summary>{inner}</details>" if rows else ""


def _browser(shown: Sequence[rollouts.Question], notes: Sequence[str]) -> str:
    text = (
        "As far as they were written down (log.generations_every): how the label of each question went, which is what "
        "was rewarded, with the majority's answer where that is another, and the generations with the answer found in "
        "them, its class and the reward. A majority that changed has flipped; wrong is a last label that is not the "
        "truth."
    )
    if shown and not any(question["judged"] for question in shown):
        notes = [*notes, "these generations do not say what is true: wrong labels cannot be told"]
    body = "".join(f'<p class="note">{html.escape(note)}</p>' for note in notes)
    if shown:
        body += (
            '<div class="controls"><select id="run" aria-label="run"></select>'
            '<select id="set" aria-label="questions"></select>'
            '<input id="text" type="search" placeholder="text, answer or label" aria-label="text">'
            '<label><input id="wrong" type="checkbox"> wrong</label>'
            '<label><input id="flipped" type="checkbox"> flipped</label></div>'
            '<p id="count"></p><div id="list"></div><button id="more">more</button>'
        )
    else:
        body += '<p class="note">No generations were written down.</p>'
    return f"<section><h2>Questions</h2><p>{html.escape(text)}</p>{body}</section>"
