"""The charts of training and of evaluations over steps."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from ttrl_jax.report import metrics, scores
from ttrl_jax.report.chart import Chart, Line, Point
from ttrl_jax.report.data import Group, Run, ends, metric_at
from ttrl_jax.tasks.sets import OWN

_BLOCKS = 12  # of a run whose episodes are no use: too few, or not known
_FEWEST = 4  # steps of a block from which its mean gets a range
_TRAINING = {
    "audit/votes_ground_truth_reward": "correct votes in training",
    "vote/majority_ratio": "majority ratio in training",
}


def called(task: str) -> str:
    """What a set of questions is called."""
    return "trained on" if task == OWN else "held out" if task == "held_out" else task


def scored(group: Group, task: str) -> tuple[list[scores.Scores], list[scores.Scores]]:
    """Of each run the scores of each question in its first evaluation of a task, and in its last; no last ones unless
    every run has been evaluated again. {} where they are not to be had or do not agree with the metrics."""
    steps = [found for run in group.runs if (found := ends(run, task))]
    first, last = ([_scores(run, task, step[i]) for run, step in zip(group.runs, steps, strict=False)] for i in (0, 1))
    if len(steps) < len(group.runs):
        return [], []
    return first, last if all(begin < end for begin, end in steps) else []


def _scores(run: Run, task: str, step: int) -> scores.Scores:
    read, numbers = scores.read_scores(run.path, task, step), run.evaluations[step][task]
    name = metric_at(numbers, "avg")
    known = list(read.get("avg", {}).values())
    return read if name and known and abs(fmean(known) - numbers[name]) < 1e-4 else {}


def accuracy(groups: Sequence[Group], task: str) -> Chart | None:
    """How right the answers to the questions of a task are: evaluations, bounds, and for the run's own questions what
    the votes of training say. None without anything to show."""
    lines = []
    for i, group in enumerate(groups):
        prefix, colors = ("", (0, 1, 4, 2, 3)) if len(groups) == 1 else (f"{group.title}: ", (i,) * 5)
        lines += _evaluated(group, task, prefix, colors)
        if task == OWN:
            for color, (name, title) in zip(colors[3:], _TRAINING.items(), strict=True):
                if len(groups) == 1 or name != "vote/majority_ratio":
                    lines += _blocks(group, name, f"{prefix}{title}", color)
    if not lines:
        return None
    note = "Points are evaluations: nothing was measured between them."
    if any(any(line.ranges) for line in lines if line.style == "dots"):
        note += " Upright bars: 95 % intervals, bootstrap over questions."
    if any(line.style == "means" and not line.name.endswith("every step") for line in lines):
        note += " Solid lines: training, means over an episode, or a twelfth of the steps of a short run."
    if any(any(line.ranges) for line in lines if line.style == "means"):
        several = any(len(group.runs) > 1 for group in groups)
        note += f" Bands: {'the lowest and the highest seed' if several else 'two standard errors over the steps'}."
    if any(line.style == "means" for line in lines):
        note += _temperatures(groups[0].runs[0])
    drawn = [*lines, *_bounds(groups, task)]
    return Chart(f"accuracy_{task}", f"Accuracy, {called(task)}", drawn, "share", True, note=note)


def _temperatures(run: Run) -> str:
    """Why the lines of training and the evaluations of a run lie apart, where they do by the way of sampling."""
    training, evaluation = (run.settings.get(f"{section}.temperature") for section in ("rollout", "eval"))
    if training == evaluation:
        return ""
    shown = "the model's own" if training is None else training
    return f" Training samples at temperature {shown}, evaluations at {evaluation}."


def _bounds(groups: Sequence[Group], task: str) -> list[Line]:
    """What the start model's vote and its likeliest answer reach, and where runs with true labels ended."""
    bounds, seen = [], set()
    across = (0, max(1, *(run.steps for group in groups for run in group.runs)))
    for i, group in enumerate(groups):
        first, last = group.ends(task)
        own = f" ({group.title})" if len(groups) > 1 else ""
        begins = all(0 in run.evaluations for run in group.runs)
        for name, color in ((metric_at(first, "maj"), 1), ("greedy", 4)):
            if begins and name in first and (name, height := fmean(first[name])) not in seen:
                seen.add((name, height))
                points = [(x, height) for x in across]
                bounds.append(Line(f"{name} of the start model{own}", i if own else color, points, "bound"))
        reached = metric_at(last, "avg")
        if reached and any(run.oracle for run in group.runs):
            points = [(x, fmean(last[reached])) for x in across]
            bounds.append(Line(f"{reached} at the end of {group.title}", i, points, "bound"))
    return bounds


def _evaluated(group: Group, task: str, prefix: str, colors: Sequence[int]) -> list[Line]:
    """avg@k, maj@k and greedy over the evaluations of a task, means of the seeds; without truths the majority ratio."""
    first, _ = group.ends(task)
    names = [(metric_at(first, "avg"), "avg"), (metric_at(first, "maj"), "maj"), ("greedy", "greedy")]
    if not names[0][0]:
        names = [("majority_ratio", "majority_ratio")]
    lines, known = [], scored(group, task)
    for (name, kind), color in zip(names, colors, strict=False):
        by_step: dict[int, list[float]] = {}
        for run in group.runs:
            for step, found in sorted(run.evaluations.items()):
                if name in found.get(task, {}):
                    by_step.setdefault(step, []).append(found[task][name])
        points = [(step, fmean(values)) for step, values in sorted(by_step.items())]
        ranges: list[tuple[float, float] | None] = [None] * len(points)
        for place, of_runs in zip((0, -1), known, strict=True):
            values = scores.pooled(of_runs, kind)
            if values and (found := scores.interval(list(values.values()))).low is not None:
                ranges[place] = (found.low, found.high)
        if points:
            lines.append(Line(f"{prefix}{name.replace('_', ' ')}, evaluated", color, points, "dots", ranges,
                              dashed=kind == "maj"))  # fmt: skip
    return lines


def _blocks(group: Group, name: str, title: str, color: int) -> list[Line]:
    """Means over the episodes of training, or, of fewer than three, over a twelfth of the steps; ranges are two
    standard errors over the steps, of several seeds the lowest and the highest."""
    run = group.runs[0]
    steps = max(each.steps for each in group.runs)
    width = run.episode or 1
    if steps < 3 * width or width == 1:
        width = max(1, math.ceil(steps / _BLOCKS))
    points, ranges = [], []
    for start in range(0, steps, width):
        parts = [[row[name] for row in each.rows if start <= row["step"] < start + width and name in row]
                 for each in group.runs]  # fmt: skip
        parts = [part for part in parts if part]
        if not parts:
            continue
        means = [fmean(part) for part in parts]
        points.append((start + (min(width, steps - start) - 1) / 2, fmean(means)))
        if len(group.runs) > 1:
            ranges.append((min(means), max(means)))
        elif len(parts[0]) >= _FEWEST:
            error = 2 * stdev(parts[0]) / math.sqrt(len(parts[0]))
            ranges.append((max(0.0, means[0] - error), min(1.0, means[0] + error)))
        else:
            ranges.append(None)
    return [Line(title if width > 1 else f"{title}, every step", color, points, "means", ranges)] if points else []


def curve(group: Group, name: str) -> tuple[list[Point], list[tuple[float, float] | None]]:
    """A metric over the steps that all seeds have: (step, mean), and of several seeds the lowest and the highest."""
    by_step: dict[int, list[float]] = {}
    for run in group.runs:
        for row in run.rows:
            if name in row:
                by_step.setdefault(row["step"], []).append(row[name])
    several = len(group.runs) > 1
    kept = [(step, values) for step, values in sorted(by_step.items()) if len(values) == len(group.runs)]
    ranges = [(min(values), max(values)) if several else None for _, values in kept]
    return [(step, fmean(values)) for step, values in kept], ranges


def training(groups: Sequence[Group]) -> dict[str, list[Chart]]:
    """A chart for each metric that some run has, by group of metrics; none for a metric that is 0 throughout."""
    names = dict.fromkeys(name for group in groups for run in group.runs for row in run.rows for name in row)
    found: dict[str, list[Chart]] = {}
    for title, members in metrics.groups_of(names).items():
        for name, (called_so, axis) in members.items():
            lines = []
            for i, group in enumerate(groups):
                points, ranges = curve(group, name)
                if points:
                    episode = group.runs[0].episode
                    lines.append(Line(group.title, i, points, "curve", ranges, episode=episode))
            if lines and (title != metrics.OTHER or any(y for line in lines for _, y in line.points)):
                file = name.replace("/", "_").replace("@", "_at_")
                found.setdefault(title, []).append(Chart(file, called_so, lines, axis, axis == "share", note=name))
    return found
