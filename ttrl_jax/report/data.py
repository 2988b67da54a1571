"""What a run folder says of its run, as far as it can be read: a run may be unfinished, or its files damaged."""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ttrl_jax import commands
from ttrl_jax.errors import InputError
from ttrl_jax.run import folder, places
from ttrl_jax.run.choice import candidates, ranked
from ttrl_jax.run.files import STARTS
from ttrl_jax.run.metrics import finite, read_lines
from ttrl_jax.run.visits import read_visits
from ttrl_jax.tasks.sets import OWN


@dataclass
class Run:
    """One run, read from its folder."""

    name: str
    path: Path
    settings: dict[str, Any] = field(default_factory=dict)  # "section.key" -> value
    finished: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)  # of metrics.jsonl, by step
    evaluations: dict[int, dict[str, dict[str, float]]] = field(default_factory=dict)  # step -> task -> name -> value
    questions: dict[str, int] = field(default_factory=dict)  # of each set, how many
    starts: list[dict[str, Any]] = field(default_factory=list)  # of each start: when, on which devices and versions
    seconds: float | None = None  # that the finished run took
    certificate: dict[str, Any] = field(default_factory=dict)  # of the finished run, if it had canaries
    notes: list[str] = field(default_factory=list)  # what could not be read

    @property
    def oracle(self) -> bool:
        """Whether true labels made the rewards: not the method, but what it could reach."""
        return self.settings.get("reward.label") == "truth"

    @property
    def steps(self) -> int:
        """Training steps that are done."""
        return 1 + max((row["step"] for row in self.rows if "vote/majority_ratio" in row), default=-1)

    @property
    def episode(self) -> int | None:
        """Steps of one pass over the questions; None where the folder does not say how many questions there are."""
        count, prompts = self.questions.get(OWN), self.settings.get("rollout.prompts")
        if not count or type(prompts) is not int or prompts < 1:
            return None
        # A run from before the key was there left out what was no whole step.
        drops = self.settings.get("data.drop_last", True)
        return max(1, count // prompts if drops else math.ceil(count / prompts))

    @property
    def planned(self) -> int | None:
        """Training steps of all episodes; None where the folder does not say."""
        episodes = self.settings.get("episodes")
        return self.episode * episodes if self.episode and type(episodes) is int else None

    @property
    def total(self) -> int | None:
        """Training steps that the run is to have; None where the folder does not say."""
        return max(self.steps, *self.evaluations, 0) if self.finished else self.planned

    @property
    def tasks(self) -> list[str]:
        """Names of the sets of questions that were evaluated, the run's own first."""
        found = dict.fromkeys(task for numbers in self.evaluations.values() for task in numbers)
        return sorted(found, key=lambda task: task != OWN)


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone; most often one run."""

    runs: tuple[Run, ...]

    @property
    def title(self) -> str:
        """The run's name, or what the names have in common, with the role where it is not the method."""
        names = [run.name for run in self.runs]
        common = os.path.commonprefix(names)
        several = f"{common}*" if common else ", ".join(names)
        name = names[0] if len(names) == 1 else f"{several} ({len(names)} seeds)"
        return name + _ROLES.get(self.runs[0].settings.get("reward.label", "majority"), "")

    @property
    def tasks(self) -> list[str]:
        """As of a run, those that some of the runs evaluated."""
        return list(dict.fromkeys(task for run in self.runs for task in run.tasks))

    def ends(self, task: str) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
        """The numbers of a task's first and last evaluation: name -> one value of each run that has it. Those of a run
        that was evaluated once are the first; there is no last then."""
        first: dict[str, list[float]] = {}
        last: dict[str, list[float]] = {}
        for run in self.runs:
            for found, step in zip((first, last), dict.fromkeys(ends(run, task) or ()), strict=False):
                for name, value in run.evaluations[step][task].items():
                    found.setdefault(name, []).append(value)
        return first, last


_ROLES = {
    "truth": " (oracle: true labels)",
    "offline": " (baseline: labels of the start model)",
    "random": " (control: random labels)",
}


def by_seed(runs: Sequence[Run]) -> list[Group]:
    """Put runs together that differ in their seed alone, in the order given. They have come equally far: a mean over
    different runs at the start and at the end would show a change that no run has had."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        settings = {name: value for name, value in run.settings.items() if name != "seed"}
        same = [settings, run.finished, run.steps, sorted(run.evaluations)]
        # A run whose settings are unknown stays alone.
        found.setdefault(json.dumps(same, sort_keys=True) if settings else f"{run.path}", []).append(run)
    return [Group(tuple(each)) for each in found.values()]


def read_runs(paths: Sequence[str]) -> list[Run]:
    """Read the runs in these folders, named by folder, or by path where that is not enough.

    Raises InputError if one is no run folder, or is given twice.
    """
    given = [places.run_folder(path, flag="RUN") for path in paths]
    resolved = [places.absolute(path) for path in given]
    for i, path in enumerate(resolved):
        if path in resolved[:i]:
            raise InputError(f"{paths[i]} is given twice; give each run once")
    names = [path.name for path in resolved]
    return [
        read_run(path, name if names.count(name) == 1 else f"{path}") for path, name in zip(given, names, strict=True)
    ]


def read_run(path: Path, name: str) -> Run:
    """Read what there is of the run in `path`. Raises InputError if that is no run folder."""
    if not (path / folder.CONFIG).is_file():
        raise InputError(f"{path} is not a run folder (no {folder.CONFIG}); give the --workdir of a training run")
    run = Run(name, path)
    try:
        made = folder.made_with(path, flag="RUN")
        run.settings = commands.flat(made.config)
        run.questions = {name: of["count"] for name, of in made.questions.items()}
    except (InputError, KeyError, TypeError, AttributeError):
        run.notes.append(f"{folder.CONFIG} is damaged: the settings are unknown")
    run.starts, _ = read_lines(path / STARTS)
    rows, unreadable = read_lines(path / "metrics.jsonl")
    by_step = {row["step"]: finite(row) for row in rows if isinstance(row.get("step"), int)}
    run.rows = [by_step[step] for step in sorted(by_step)]
    if unreadable:
        run.notes.append(f"{unreadable} of the lines of metrics.jsonl cannot be read and are left out")
    run.evaluations = {row["step"]: found for row in run.rows if (found := evaluation_of(row))}
    try:
        summary = folder.read_summary(path)
        add_summary(run.evaluations, summary or {})
        run.finished, run.seconds = summary is not None, finite(summary or {}).get("seconds")
        run.certificate = dict((summary or {}).get("certificate", {}))
    except (ValueError, KeyError, TypeError, AttributeError):
        run.notes.append(f"{folder.SUMMARY} is damaged and left out")
    if not run.rows:
        run.notes.append("metrics.jsonl has no row that can be read: there are no curves")
    return run


def evaluation_of(row: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Of a row of metrics the numbers eval/<task>/<name>, by task."""
    found: dict[str, dict[str, float]] = {}
    for name, value in row.items():
        if name.startswith("eval/") and name.count("/") == 2:
            _, task, what = name.split("/")
            found.setdefault(task, {})[what] = value
    return found


def add_summary(evaluations: dict[int, dict[str, dict[str, float]]], summary: Mapping[str, Any]) -> None:
    """Add the first and the last evaluation of a summary, where metrics.jsonl did not have them."""
    for name, numbers in summary.items():
        for end in ("before", "after"):
            if name == end or name.endswith(f"_{end}"):
                step = 0 if end == "before" else summary["steps"]
                task = name.removesuffix(end).removesuffix("_") or OWN
                evaluations.setdefault(step, {}).setdefault(task, finite(numbers))


def metric_at(numbers: Mapping[str, float], kind: str) -> str | None:
    """The name kind@k with the greatest k, such as avg@16; None if there is none."""
    counts = [int(name.split("@")[1]) for name in numbers if re.fullmatch(rf"{kind}@\d+", name)]
    return f"{kind}@{max(counts)}" if counts else None


def ends(run: Run, task: str) -> tuple[int, int] | None:
    """The steps of the first and the last evaluation of a task; None without any."""
    steps = sorted(step for step, found in run.evaluations.items() if task in found)
    return (steps[0], steps[-1]) if steps else None


def choices(run: Run) -> dict[str, int]:
    """The evaluations to look at apart -> their step: first, last, chosen without labels, and best.

    chosen: the best by `choice.ranked`, of the models after each episode, which needs no truth.
    best: the highest avg@k of these, which needs the truths, so that nobody without them could have picked it.
    """
    own = {step: found[OWN] for step, found in sorted(run.evaluations.items()) if OWN in found}
    if not own:
        return {}
    found = {"start": min(own), "last": max(own)}
    if run.episode and (order := ranked(candidates(read_visits(run.path), episode=run.episode))):
        found["chosen"] = order[0].step
    kind = metric_at(own[min(own)], "avg")
    rated = {step: numbers[kind] for step, numbers in own.items() if kind in numbers}
    return found | ({"best": max(rated, key=lambda step: rated[step])} if rated else {})
