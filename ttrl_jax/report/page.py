"""The page: what was read of the runs, as one HTML file.

Charts are drawn by plotly, whose script stands in the page, packed: 2 MB instead of 4.8. Texts of models and data sets
stand in the page only as JSON, which its scripts show as text, never as HTML.
"""

import base64
import gzip
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from plotly.offline import get_plotlyjs

from ttrl_jax.report import curves, fit, formulas, metrics, models, result, table
from ttrl_jax.report.chart import Bars, Chart, plain
from ttrl_jax.report.data import Group, Run, by_seed
from ttrl_jax.report.models import Model
from ttrl_jax.report.rollouts import Question
from ttrl_jax.run.diagnosis import diagnose
from ttrl_jax.run.visits import read_visits

_NUMBER_BYTES = 8  # of a value in a curve, about
FILTERS = {
    "wrong": ("wrong", "the last label that was written down is not the truth"),
    "flipped": ("flipped", "the majority's answer changed between two visits"),
    "became_right": ("became right", "the majority's answer was wrong at the first visit and is right at the last"),
    "became_wrong": ("became wrong", "the majority's answer was right at the first visit and is wrong at the last"),
    "silent": ("no answer", "some responses of the last visit have no answer"),
    "unformed": ("out of format", "some responses of the last visit are not in the format"),
}
SORTS = {
    "order": "order of the data",
    "share": "share of the majority",
    "flips": "flips",
    "change": "change of the share",
    "length": "length of responses",
}


@dataclass(frozen=True)
class Charts:
    """All charts of a report, by their place in the page."""

    main: Sequence[Chart]  # a set of questions each
    training: Mapping[str, Sequence[Chart]]  # by group of metrics
    models: Sequence[Bars]

    @property
    def all(self) -> list[Chart | Bars]:
        """Every chart, in the order of the page."""
        return [*self.main, *(chart for group in self.training.values() for chart in group), *self.models]


def charts(groups: Sequence[Group], measured: Sequence[Model]) -> Charts:
    """The charts of these runs and models."""
    tasks = dict.fromkeys(task for group in groups for task in group.tasks)
    main = [chart for task in tasks if (chart := curves.accuracy(groups, task))]
    return Charts(main, curves.training(groups), models.charts(measured))


def page(runs: Sequence[Run], measured: Sequence[Model], questions: Sequence[Question]) -> str:
    """The report as HTML.

    measured: what `evaluate` measured. questions: as `read_questions` returns them; they are thinned out to fit 8 MB.
    """
    groups = by_seed(runs)
    measured = [*models.of_groups(groups), *measured]
    shown, notes = fit.fit(questions)
    title = "TTRL: " + ", ".join([group.title for group in groups] or [model.name for model in measured])
    made = charts(groups, measured)
    parts = [
        _head(title, runs=bool(runs)),
        *[f'<p class="note">{html.escape(f"{run.name}: {note}")}</p>' for run in runs for note in run.notes],
        _first(runs, groups, made) if runs else "",
        _section(
            "results", "Before and after",
            "The first and the last evaluation of each run, never the best. Truths are used to measure, nothing else. "
            "Runs that differ in their seed alone are put together: their mean, with the lowest and the highest.",
            table.results(groups),
        ) if runs else "",
        _training(made) if runs else "",
        _browser(shown, notes) if runs else "",
        _section(
            "models", "Models side by side",
            "The first and the last evaluation of each run, and what the command evaluate measured of other models or "
            "checkpoints. Numbers of different samples or temperatures are not comparable.",
            _grid(made.models) + table.measured(measured, fold=bool(runs)),
        ),
        _checkpoints(runs),
        _settings(runs) if runs else "",
        _data(made, shown),
    ]  # fmt: skip
    return "\n".join(part for part in parts if part) + "\n</body>\n</html>\n"


def _asset(name: str) -> str:
    return resources.files("ttrl_jax.report").joinpath(name).read_text(encoding="utf-8")


def _head(title: str, *, runs: bool) -> str:
    places = {"results": "Before and after", "training": "Training", "browser": "Questions", "models": "Models",
              "settings": "Settings"}  # fmt: skip
    links = "".join(f'<a href="#{name}">{text}</a>' for name, text in places.items() if runs or name == "models")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{_asset('colors.css')}{_asset('page.css')}</style>\n</head>\n"
        f"<body>\n<header><h1>{html.escape(title)}</h1>"
        f'<nav>{links}<button id="theme" type="button">light / dark</button></nav></header>\n'
        '<p id="failed" class="note" hidden>The charts cannot be drawn: this needs a browser of 2023 or newer.</p>'
    )


def _first(runs: Sequence[Run], groups: Sequence[Group], made: Charts) -> str:
    """The first screen: results in sentences, the verdicts, facts and the main charts."""
    several = len(groups) > 1
    said = [
        f'<p class="result">{html.escape((f"{group.title}: " if several else "") + result.sentence(group))}</p>'
        for group in groups
    ]
    verdicts = "".join(_verdict(run, name=len(runs) > 1, fold=len(runs) > 2) for run in runs)
    known = "".join(_facts(run, name=len(runs) > 1) for run in (runs if len(runs) <= 3 else [runs[0]]))
    left = f'<p class="about">{html.escape(result.uncertainty(groups))}</p>{verdicts}{_grid(made.main, "main")}'
    return f'{"".join(said)}<div class="first"><div>{left}</div><div>{known}</div></div>'


def _verdict(run: Run, *, name: bool, fold: bool) -> str:
    found = diagnose(run.rows, read_visits(run.path))
    said = f"{run.name}: {found.verdict}." if name else f"Verdict: {found.verdict}."
    if fold:
        return table.folded(said, f'<p class="verdict">{html.escape(found.text)}</p>')
    return f'<p class="verdict"><strong>{html.escape(said)}</strong> {html.escape(found.text)}</p>'


def _facts(run: Run, *, name: bool) -> str:
    items = "".join(f"<dt>{html.escape(what)}</dt><dd>{html.escape(value)}</dd>" for what, value in result.facts(run))
    return f'<div class="facts"><h3>{html.escape(run.name if name else "This run")}</h3><dl>{items}</dl></div>'


def _section(name: str, title: str, text: str, body: str) -> str:
    """A part of the page; body is HTML."""
    body = body or '<p class="note">There is nothing to show here.</p>'
    return f'<section id="{name}"><h2>{html.escape(title)}</h2><p>{html.escape(text)}</p>{body}</section>'


def _figure(chart: Chart | Bars) -> str:
    note = f"<small>{html.escape(chart.note)}</small>" if chart.note else ""
    name, title = html.escape(chart.name), html.escape(chart.title)
    return (
        f'<figure id="chart-{name}"><figcaption>{title}{note}</figcaption>'
        f'<div class="plot" data-chart="{name}" role="img" aria-label="{title}"></div></figure>'
    )


def _grid(drawn: Sequence[Chart | Bars], kind: str = "") -> str:
    """Figures side by side, as many as fit."""
    return f'<div class="grid {kind}">{"".join(map(_figure, drawn))}</div>' if drawn else ""


def _training(made: Charts) -> str:
    controls = (
        '<div class="controls"><label>bold line <select id="smooth"><option value="episode">mean of an episode</option>'
        '<option value="5">running mean of 5 steps</option><option value="11">running mean of 11 steps</option>'
        '<option value="31">running mean of 31 steps</option><option value="raw">every step</option></select></label>'
        "</div>"
    )
    body = controls if made.training else ""
    for title, drawn in made.training.items():
        main, rest = drawn[: metrics.MAIN], drawn[metrics.MAIN :]
        if title == metrics.OTHER:
            main, rest = drawn, []
        inner = _grid(main) + table.folded(f"{len(rest)} more of {title.lower()}", _grid(rest))
        opened = " open" if title in metrics.OPEN else ""
        body += f'<details class="group"{opened}><summary>{title} ({len(drawn)})</summary>{inner}</details>'
    text = (
        "Every step, of its own questions: few, so that one step says little. The bold line is a mean over steps, the "
        "thin one every step; of several seeds the mean, with the lowest and the highest. Drag in a chart to zoom, "
        "double-click to go back, click a name to hide its line."
    )
    return _section("training", "Training", text, body)


def _settings(runs: Sequence[Run]) -> str:
    return _section("settings", "Settings", "Those in which the runs differ stand first.", table.settings(runs))


def _checkpoints(runs: Sequence[Run]) -> str:
    body = table.checkpoints(runs)
    text = (
        "Last is the result. Chosen has the votes that agree most, in the episode after it, of those which kept their "
        "clear labels; it is the start where none has risen above that. It takes no truth to choose it, and it may not "
        "have been evaluated. Best has the highest avg@k of all evaluations on the run's own questions: only who knows "
        "the truths can choose it."
    )
    return _section("checkpoints", "Checkpoints", text, body) if body else ""


def _browser(shown: Sequence[Question], notes: Sequence[str]) -> str:
    text = (
        "Each bar of a strip is a visit of the question, as high as the majority's share of the votes: green where the "
        "majority is known to be right, red where wrong, grey where that is not known. Open a question for its "
        "ballots, and an answer for the responses that gave it. Responses were kept every log.generations_every steps."
    )
    if shown and not any(question["judged"] for question in shown):
        notes = [*notes, "these generations do not say what is true: wrong labels cannot be told"]
    body = "".join(f'<p class="note">{html.escape(note)}</p>' for note in notes)
    if not shown:
        return _section("browser", "Questions", text, f'{body}<p class="note">No generations were written down.</p>')
    boxes = "".join(
        f'<label title="{meaning}"><input id="{name}" type="checkbox"> {title} '
        f'(<span id="{name}_count"></span>)</label>'
        for name, (title, meaning) in FILTERS.items()
    )
    sorts = "".join(f'<option value="{name}">{title}</option>' for name, title in SORTS.items())
    body += (
        '<div class="controls"><select id="run" aria-label="run"></select>'
        '<select id="set" aria-label="set of questions"></select>'
        '<input id="text" type="search" placeholder="text, answer or label" aria-label="search">'
        f'<label>sort by <select id="sort">{sorts}</select></label>'
        '<button id="order" type="button" title="turn the order round">↑↓</button>'
        '<label><input id="math" type="checkbox" checked> formulas</label></div>'
        f'<div class="controls">{boxes}</div>'
        '<p><span id="count"></span> <button id="all" type="button" hidden>show all</button> '
        '<a id="view" href="#browser">link to this list</a></p>'
        '<div id="list"></div><button id="more" type="button">more</button>'
    )
    return _section("browser", "Questions", text, body)


def _data(made: Charts, shown: Sequence[Question]) -> str:
    """What the page's scripts read, and the scripts."""
    lines = sum(len(chart.lines) * (4 if any(any(line.ranges) for line in chart.lines) else 2)
                for chart in made.all if isinstance(chart, Chart))  # fmt: skip
    most = max(30, fit.CURVE_BYTES // (_NUMBER_BYTES * max(1, lines)))
    packed = base64.b64encode(gzip.compress(get_plotlyjs().encode("utf-8"), 9, mtime=0)).decode("ascii")
    values = {"charts": [plain(chart, most=most) for chart in made.all]}
    scripts = ["charts.js"]
    if shown:
        texts, answers = _texts(shown)
        found = formulas.convert(texts, answers, budget=fit.FORMULA_BYTES, size=fit.size)
        values |= {"questions": list(shown), "formulas": [formulas.PATTERN, found]}
        scripts.append("questions.js")
    return "\n".join(
        [f'<script type="text/plain" id="plotly">{packed}</script>']
        + [f'<script type="application/json" id="{name}">{fit.embed(value)}</script>' for name, value in values.items()]
        + [f"<script>\n{_asset(script)}</script>" for script in scripts]
    )


def _texts(shown: Sequence[Question]) -> tuple[list[str], list[str]]:
    """The texts in which formulas are looked for, and those that are one formula or none."""
    texts: list[Any] = [question[name] for question in shown for name in ("question", "prompt")]
    answers: list[Any] = [question["truth"] for question in shown]
    for question in shown:
        for visit in question["visits"]:
            answers += [answer for _, answer, *_ in visit["ballot"]]
            texts += [sample[0] for sample in visit["samples"]]
    return [text for text in texts if text], [answer for answer in answers if isinstance(answer, str)]
