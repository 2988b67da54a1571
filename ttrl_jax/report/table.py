"""The tables of the page, as HTML."""

import html
from collections.abc import Sequence
from statistics import fmean

from ttrl_jax.report.curves import called
from ttrl_jax.report.data import Group, Run, choices, metric_at
from ttrl_jax.report.models import Model
from ttrl_jax.report.result import NOT_YET

# What stands first, by the name without @k; the rest of an evaluation is folded.
_MAIN = ("avg", "maj", "greedy", "pass", "majority_ratio", "format_rate", "no_answer_rate", "truncation_rate")


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


def folded(title: str, body: str) -> str:
    """HTML that one opens; "" for nothing."""
    return f"<details><summary>{html.escape(title)}</summary>{body}</details>" if body else ""


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def spread(values: Sequence[float]) -> str:
    """One value, or the mean of several with the lowest and the highest; "-" without any."""
    if len(values) < 2:
        return _shown(values[0] if values else None)
    return f"{fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def results(groups: Sequence[Group]) -> str:
    """First and last evaluation of every task, and the difference of their means: the main metrics, the others
    folded."""
    head = ["questions", "metric"]
    for group in groups:
        head += [f"{group.title}: before", "after", "change"]
    main, rest = [], []
    for task in dict.fromkeys(task for group in groups for task in group.tasks):
        pairs = [group.ends(task) for group in groups]
        names = dict.fromkeys(name for pair in pairs for numbers in pair for name in numbers)
        firsts = [metric_at(names, kind) or kind for kind in _MAIN]
        for name in [*(name for name in firsts if name in names), *(name for name in names if name not in firsts)]:
            row = [called(task), name]
            for first, last in pairs:
                before, after = first.get(name, []), last.get(name, [])
                row += [spread(before), spread(after) if last else NOT_YET]
                row.append(f"{fmean(after) - fmean(before):+.3f}" if before and after else "-")
            (main if name in firsts else rest).append(row)
    return table(head, main) + folded(f"{len(rest)} more metrics", table(head, rest))


def measured(models: Sequence[Model], *, fold: bool) -> str:
    """Every number of the models, a column each; fold: to be opened first."""
    rows = []
    for task in dict.fromkeys(task for model in models for task in model.results):
        found = [model.results.get(task, {}) for model in models]
        for name in dict.fromkeys(name for numbers in found for name in numbers):
            rows.append([called(task), name, *(_shown(numbers.get(name)) for numbers in found)])
    body = table(["questions", "metric", *(model.name for model in models)], rows)
    return folded(f"{len(rows)} numbers of each model", body) if fold else body


def checkpoints(runs: Sequence[Run]) -> str:
    """The models that `choices` picks, with the main numbers of every task where they were evaluated, of runs that
    have more than one evaluation."""
    tasks, rows = list(dict.fromkeys(task for run in runs for task in run.tasks)), []
    kinds = ("avg", "maj", "majority_ratio")
    for run in runs:
        for title, step in choices(run).items() if len(run.evaluations) > 1 else ():
            row = [run.name, title, str(step)]
            for task in tasks:
                numbers = run.evaluations.get(step, {}).get(task, {})
                row += [_shown(numbers.get(metric_at(numbers, kind) or kind)) for kind in kinds]
            rows.append(row)
    head = ["run", "checkpoint", "step"]
    head += [f"{called(task)}: {kind}" for task in tasks for kind in ("avg@k", "maj@k", "majority ratio")]
    return table(head, rows)


def settings(runs: Sequence[Run]) -> str:
    """Every setting of every run; those in which the runs differ stand first, marked."""
    names = sorted(dict.fromkeys(name for run in runs for name in run.settings))
    rows = [[name, *(_setting(run, name) for run in runs)] for name in names]
    rows.sort(key=lambda row: len(set(row[1:])) == 1)
    head = ["setting", *(run.name for run in runs)]
    differing = [len(set(row[1:])) > 1 for row in rows]
    body = table(head, rows, differing)
    return table(head, rows[: sum(differing)]) + folded(f"{len(rows)} settings", body)


def _setting(run: Run, name: str) -> str:
    return "-" if name not in run.settings else str(run.settings[name]) or "(empty)"
