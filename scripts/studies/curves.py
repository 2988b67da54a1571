"""Figures 5 and 6, what a model reaches beside its bounds, right labels and lucky hits, and what settings do."""

import itertools
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from ttrl_jax.report.chart import Bars
from ttrl_jax.report.data import Group
from ttrl_jax.report.table import spread
from ttrl_jax.tasks.sets import OWN

from .options import Options, Results, Run, Study, runs_of
from .printed import printed
from .shown import (
    NONE,
    ORACLE,
    TITLES,
    Shown,
    Table,
    algorithms_table,
    chart,
    end_of,
    evaluated,
    gained,
    mean_curve,
)

MODEL, SEVEN = "Qwen/Qwen2.5-Math-1.5B", "Qwen/Qwen2.5-Math-7B"

# ---------------------------------------------------------------------- figure 5: algorithms


def algorithm_runs(options: Options) -> list[Run]:
    [model], [task] = options.models_or((MODEL,), ("ways",)), options.tasks_or(("math500",), ("carries",))
    arms = {name: {"algorithm": name} for name in ("grpo", "ppo", "prime")} | {ORACLE: {"reward.label": "truth"}}
    return [run for arm, keys in arms.items() for run in runs_of(options, model, task, arm=(arm,), differing=keys)]


def show_algorithms(results: Results, options: Options) -> Shown:
    groups = {arm: group for (arm,), group in results.items()}
    lines = {
        TITLES[arm]: evaluated(group, OWN, "avg") or mean_curve(group, "audit/ground_truth_reward")
        for arm, group in groups.items()
    }
    training = {TITLES[arm]: mean_curve(group, "audit/ground_truth_reward") for arm, group in groups.items()}
    charts = [
        chart("avg", "avg@k on the questions trained on", lines),
        chart("correct", "Correct samples in training", training),
    ]
    return Shown([algorithms_table(groups)], {"figure5": charts})


# ---------------------------------------------------------------------- figure 6: over training


def course_runs(options: Options) -> list[Run]:
    more = {"eval__every": 8} if options.small else {}  # an episode; the configs of the paper have 2
    return [
        run
        for model in options.models_or((MODEL,), ("noise",))
        for task in options.tasks_or(("aime", "amc", "math500"), ("sums",))
        for run in runs_of(options, model, task, arm=(model, task), **more)
    ]


def show_courses(results: Results, options: Options) -> Shown:
    rows, charts = [], []
    for (model, task), group in results.items():
        curves = {kind: evaluated(group, OWN, kind) for kind in ("avg", "maj")}
        majority = dict(curves["maj"])
        start = curves["avg"][0][1] if curves["avg"] else None
        for step, value in curves["avg"]:
            change = f"{100 * (value - start):+.1f}"
            rows.append([model, task, f"{step:g}", f"{100 * value:.1f}", f"{100 * majority[step]:.1f}", change])
        charts.append(chart(f"{model}-{task}", f"{model.rpartition('/')[2]} on {task}", curves))
    head = ["model", "questions", "step", "avg@k", "maj@k", "avg@k less the start's"]
    return Shown([Table("figure6", "avg@k and maj@k in percent, over training", head, rows)], {"figure6": charts})


# ---------------------------------------------------------------------- bounds


def bound_runs(options: Options) -> list[Run]:
    more = {"eval__every": 0, "eval__samples": 64}  # as the vote of a training step
    if options.small:
        more["eval__tasks"] = ()
    return [
        run
        for model in options.models_or((SEVEN,), ("noise",))
        for task in options.tasks_or(("aime", "amc", "math500"), ("sums",))
        for label in ("majority", "truth")
        for run in runs_of(options, model, task, arm=(model, task, label), differing={"reward.label": label}, **more)
    ]


def show_bounds(results: Results, options: Options) -> Shown:
    rows, series, tasks = [], {}, []
    for model, task in dict.fromkeys(arm[:2] for arm in results):
        group, oracle = results[model, task, "majority"], results[model, task, "truth"]
        ends = [end_of(group, OWN, "avg", 0), end_of(group, OWN, "maj", 0), end_of(group, OWN, "avg", -1)]
        before, vote, after, top = values = [fmean(each) for each in (*ends, end_of(oracle, OWN, "avg", -1))]
        above = "above" if after > vote else "not above"
        rows.append([model, task, *(f"{100 * x:.1f}" for x in values), above, gained(before, after, top)])
        tasks.append(f"{model.rpartition('/')[2]} {task}")
        for name, value in zip(("start", "maj@k of the start", "TTRL", "oracle"), values, strict=True):
            series.setdefault(name, []).append(value)
    head = ["model", "questions", "avg@k before", "maj@k before", "avg@k after", "avg@k of the oracle"]
    head += ["after is ... the start's vote", "of the oracle's gain"]
    title = "in percent, k = eval.samples: the two bounds are the start's vote and learning from true answers"
    return Shown(
        [Table("bounds", title, head, rows)],
        {"bounds": [Bars("bounds", "avg@k", tasks, list(series.items()), "share")]},
    )


# ---------------------------------------------------------------------- labels

HITS = {
    "label accuracy": "audit/label_accuracy",
    "majority ratio": "vote/majority_ratio",
    "reward accuracy": "audit/reward_accuracy",
    "hit ratio": "audit/hit_ratio",
}


def label_runs(options: Options) -> list[Run]:
    return [
        run
        for model in options.models_or((SEVEN,), ("noisy",))
        for task in options.tasks_or(("aime",), ("sums",))
        for run in runs_of(options, model, task, arm=(model, task), eval__every=0)
    ]


def show_labels(results: Results, options: Options) -> Shown:
    rows, charts, known = [], [], printed()["labels"]
    for (model, task), group in results.items():
        prints = known.get(model.rpartition("/")[2], {}).get(task, {})
        curves = {name: mean_curve(group, metric) for name, metric in HITS.items()}
        for name, curve in curves.items():
            cells = [f"{100 * y:.1f}" for y in thirds(group, curve)] if curve else [NONE] * 4
            rows.append([model, task, name, *cells, f"{prints[name]:g}" if name in prints else NONE])
        charts.append(chart(f"{model}-{task}", f"{model.rpartition('/')[2]} on {task}", curves))
    head = ["model", "questions", "metric", "first step", "first episode", "middle episode", "last episode"]
    title = "in percent; the hit ratio is the reward accuracy of questions with a wrong label"
    tables = [Table("labels", title, [*head, "printed, at the start"], rows)]
    return Shown(tables, {"labels": charts})


def thirds(group: Group, curve: Sequence[tuple[float, float]]) -> list[float]:
    """Of a curve: its first value, and its means over the first, the middle and the last episode, or, of one that has
    values at some steps alone, over as many of these."""
    values = [y for _, y in curve]
    size = min(len(values), group.runs[0].episode or 1)
    middle = (len(values) - size) // 2
    return [values[0], *(fmean(values[i : i + size]) for i in (0, middle, len(values) - size))]


# ---------------------------------------------------------------------- ablations

# One key at a time. The last lines of both fail: too hot, too fast, too short.
LISTS: Mapping[str, Sequence[Any]] = {
    "rollout.temperature": (0.6, 1.0, 2.0),
    "train.learning_rate": (1e-7, 5e-6, 5e-5),
    "episodes": (2, 20),
    "rollout.prompts": (8, 64),
    "rollout.votes": (32,),
    "train.samples": (16,),
}
SMALL_LISTS: Mapping[str, Sequence[Any]] = {
    "rollout.temperature": (1.0, 2.0),
    "train.learning_rate": (1e-5, 1e-3),
    "episodes": (4,),
    "rollout.prompts": (4,),
    "rollout.votes": (64,),
    "train.samples": (4,),
}


def settings_of(options: Options) -> list[dict[str, Any]]:
    """The settings beside the config's own, which are the first: the grid, crossed, and the lists, one at a time."""
    grid = [dict(zip(options.grid, values, strict=True)) for values in itertools.product(*options.grid.values())]
    lists = options.lists or ({} if options.grid else SMALL_LISTS if options.small else LISTS)
    return [{}, *(each for each in grid if each), *({key: x} for key, values in lists.items() for x in values)]


def ablation_runs(options: Options) -> list[Run]:
    [model], [task] = options.models_or((MODEL,), ("noisy",)), options.tasks_or(("math500",), ("sums",))
    found = []
    for each in settings_of(options):
        name = ", ".join(f"{key}={value}" for key, value in each.items()) or "as the config says"
        found += runs_of(options, model, task, arm=(name,), differing=each, eval__every=0)
    return found


def show_ablations(results: Results, options: Options) -> Shown:
    rows, entropies, ratios = [], {}, {}
    for (name,), group in results.items():
        entropies[name], ratios[name] = (mean_curve(group, m) for m in ("update/entropy", "vote/majority_ratio"))
        ends = [spread(end_of(group, OWN, "avg", which)) for which in (0, -1)]
        courses = [f"{fmean(y[:4]):.3f} -> {fmean(y[-4:]):.3f}" if (y := [v for _, v in curve]) else NONE
                   for curve in (entropies[name], ratios[name])]  # fmt: skip
        rows.append([name, *ends, *courses])
    head = ["setting", "avg@k before", "avg@k after", "entropy, nats", "majority ratio"]
    charts = [
        chart("entropy", "Entropy of the next token", entropies, y="nats", share=False),
        chart("majority", "Majority ratio", ratios),
    ]
    title = "one setting at a time, or a grid; courses are means over the first and the last four steps"
    return Shown([Table("ablations", title, head, rows)], {"ablations": charts})


STUDIES = (
    Study("figure5", "three algorithms beside the oracle", algorithm_runs, show_algorithms),
    Study("figure6", "avg@k and maj@k over training", course_runs, show_courses),
    Study("bounds", "after training beside the start's vote and the oracle", bound_runs, show_bounds),
    Study("labels", "right labels, right rewards, lucky hits", label_runs, show_labels),
    Study("ablations", "settings, one at a time or crossed, with entropy curves", ablation_runs, show_ablations),
)
