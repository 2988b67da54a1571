"""Models side by side: the ends of runs, and what `evaluate` measured."""

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ttrl_jax.errors import InputError
from ttrl_jax.report.chart import Bars
from ttrl_jax.report.curves import called
from ttrl_jax.report.data import Group, Run, metric_at
from ttrl_jax.run.metrics import finite

RESULTS = "results.json"  # of an evaluation

# The ways in which responses are read: name -> what its metrics begin with.
READINGS = {
    "strict: in the format": "strict_",
    "flexible: in the tag": "flexible_",
    "as trained": "",
    "or last number": "last_number_",
}


@dataclass(frozen=True)
class Model:
    """What was measured of one model: task -> name -> value."""

    name: str
    results: Mapping[str, Mapping[str, float]]


def of_groups(groups: Sequence[Group]) -> list[Model]:
    """The first evaluation of each group, and the last if there is another; means of the seeds."""
    found = []
    for group in groups:
        ends = {task: group.ends(task) for task in group.tasks}
        for i, when in enumerate(("start", "end" if all(run.finished for run in group.runs) else "so far")):
            results = {
                task: {name: fmean(values) for name, values in pair[i].items()}
                for task, pair in ends.items()
                if pair[i]
            }
            if results:
                found.append(Model(f"{group.title}: {when}", results))
    return found


def of_runs(runs: Sequence[Run]) -> list[Model]:
    """What `evaluate` wrote into the folders of runs. Adds to `run.notes` what cannot be read."""
    found = []
    for run in runs:
        for path in sorted((run.path / "eval").glob(f"*/{RESULTS}")):
            try:
                found.append(read(path.parent, f"{run.name}: {path.parent.name}"))
            except InputError as error:
                run.notes.append(f"{error}: it is left out")
    return found


def read(folder: Path, name: str) -> Model:
    """The results of an evaluation. Raises InputError if its file is damaged."""
    path = folder / RESULTS
    try:
        made: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Model(name, {str(task): finite(numbers) for task, numbers in made["results"].items()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged; run the evaluation again") from error


def charts(models: Sequence[Model]) -> list[Bars]:
    """Bars of each set of questions: accuracy, the three readings, pass@k and cons@k over k."""
    found = []
    for task in dict.fromkeys(task for model in models for task in model.results):
        measured = [(model.name, model.results[task]) for model in models if task in model.results]
        found += [
            chart for chart in _of_task(task, measured) if any(x is not None for _, xs in chart.series for x in xs)
        ]
    return found


def _of_task(task: str, measured: Sequence[tuple[str, Mapping[str, float]]]) -> list[Bars]:
    kinds = {"avg": "avg@k", "maj": "maj@k", "greedy": "greedy", "pass": "pass@k", "best_of": "best_of@k"}
    kinds["scorer_best_of"] = "best_of@k by eval.scorer"
    valid, correct = "Valid responses", "Correct responses by the way of reading"
    about = "Those in which an answer can be read, by the way of reading."

    def bars(
        file: str, title: str, groups: Iterable[str], read: Callable[[Mapping[str, float]], list], **more: str
    ) -> Bars:
        series = [(name, read(numbers)) for name, numbers in measured]
        return _bars(f"{file}_{task}", f"{title}, {called(task)}", list(groups), series, **more)

    best = "k is the greatest that was measured."
    made = [
        bars("models", "Accuracy", kinds.values(), lambda found: [_of_kind(found, kind) for kind in kinds], note=best)
    ]
    if any("strict_valid_rate" in numbers for _, numbers in measured):
        ways = READINGS.values()
        made += [
            bars("valid", valid, READINGS, lambda found: [_valid(found, way) for way in ways], note=about),
            bars("read", correct, READINGS, lambda found: [_of_kind(found, f"{way}avg") for way in ways]),
        ]
    for kind, title in (("pass", "pass@k over k"), ("maj", "maj@k (cons@k) over k")):
        ks = sorted({k for _, numbers in measured for k in _ks(numbers, kind)})
        read = functools.partial(_over, kind, ks)
        made.append(bars(kind, title, map(str, ks), read, x="k"))
    return made


def _over(kind: str, ks: Sequence[int], numbers: Mapping[str, float]) -> list[float | None]:
    return [numbers.get(f"{kind}@{k}") for k in ks]


def _bars(
    name: str,
    title: str,
    groups: Sequence[str],
    series: Sequence[tuple[str, list[float | None]]],
    *,
    note: str = "",
    x: str = "",
) -> Bars:
    """Without the groups that no series has a value in."""
    kept = [i for i in range(len(groups)) if any(values[i] is not None for _, values in series)]
    shown = [(model, [values[i] for i in kept]) for model, values in series]
    return Bars(name, title, [groups[i] for i in kept], shown, "share", x, note)


def _of_kind(numbers: Mapping[str, float], kind: str) -> float | None:
    return numbers.get(metric_at(numbers, kind) or kind)


def _valid(numbers: Mapping[str, float], prefix: str) -> float | None:
    if prefix:
        return numbers.get(f"{prefix}valid_rate")
    return 1 - numbers["no_answer_rate"] if "no_answer_rate" in numbers else None


def _ks(numbers: Mapping[str, float], kind: str) -> list[int]:
    return [int(k) for name in numbers if name.startswith(f"{kind}@") and (k := name.split("@")[1]).isdecimal()]
