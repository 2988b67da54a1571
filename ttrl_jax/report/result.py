"""What came out of runs, in sentences, and what is to be known of them."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from ttrl_jax.report import scores
from ttrl_jax.report.curves import called, scored
from ttrl_jax.report.data import Group, Run, ends, metric_at
from ttrl_jax.tasks.sets import OWN

NOT_YET = "not evaluated yet"


def sentence(group: Group) -> str:
    """The result of a group in one or two sentences, with the uncertainty of the change where it is known."""
    parts = [part for task in group.tasks if (part := _task(group, task))]
    said = f"{'; '.join(parts)}." if parts else ""
    unfinished = [run for run in group.runs if not run.finished]
    if unfinished:
        said = f"{_progress(unfinished[0])} {said} {_so_far(unfinished[0])}"
    return " ".join(said.split()) or "Nothing was evaluated."


def _task(group: Group, task: str) -> str:
    """One clause: the main number of a task before and after."""
    first, last = group.ends(task)
    kind = "avg"
    name = metric_at(first, kind)
    if name is None:
        kind = name = "majority_ratio"
    if name not in first:
        return ""
    known = fmean(first["truths"]) if kind == "avg" and "truths" in first else group.runs[0].questions.get(task)
    if task in (OWN, "held_out"):
        where = f"the {f'{known:.0f} ' if known else ''}questions {called(task)}"
    else:
        where = called(task) + (f" ({known:.0f} questions)" if known else "")
    shown = f"{name.replace('_', ' ')} on {where}: {fmean(first[name]):.3f}"
    if name not in last:
        return f"{shown} at the start" + ("" if _untrained(group) else f", {NOT_YET} after training")
    steps = {ends(run, task)[1] for run in group.runs if ends(run, task)}
    shown += f" → {fmean(last[name]):.3f}"
    if not all(run.finished for run in group.runs):
        shown += f" (after {max(steps)} steps)"
    gained = fmean(last[name]) - fmean(first[name])
    interval = scores.change(*(scores.pooled(of_runs, kind) for of_runs in scored(group, task)))
    if interval is not None and interval.low is not None:
        return f"{shown}, {gained:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
    return f"{shown}, {gained:+.3f}"


def _untrained(group: Group) -> bool:
    return all(run.finished and run.total == 0 for run in group.runs)


def _progress(run: Run) -> str:
    of = f" of {run.total}" if run.total else ""
    return f"The run is not finished: {run.steps}{of} steps are done."


def _so_far(run: Run) -> str:
    """How the votes of training went until now."""
    width = min(run.episode or 1, run.steps // 2)
    said = []
    for name, title in (
        ("audit/votes_ground_truth_reward", "correct votes"),
        ("vote/majority_ratio", "the majority ratio"),
    ):
        values = [row[name] for row in run.rows if name in row]
        if width and len(values) >= 2 * width:
            said.append(f"{title} went from {fmean(values[:width]):.3f} to {fmean(values[-width:]):.3f}")
    if not said:
        return ""
    steps = f"means of the first and the last {width} steps" if width > 1 else "the first and the last step"
    return f"In training {' and '.join(said)} ({steps})."


def uncertainty(groups: Sequence[Group]) -> str:
    """What the brackets in the sentences are; "" if there are none."""
    if not any("[" in sentence(group) for group in groups):
        return ""
    said = (
        "Brackets: 95 % interval of the change, from a paired bootstrap over the questions "
        f"({scores.RESAMPLES:,} resamples, seed {scores.SEED})."
    )
    if any(len(group.runs) > 1 for group in groups):
        said += " Of several seeds, each question counts with its mean over these."
    else:
        said += " It does not cover what another seed would change: train several seeds to see that."
    return said


def facts(run: Run) -> list[tuple[str, str]]:
    """(what, value) of a run, as far as its folder says."""
    setting = run.settings.get
    found = [("model", _last_part(setting("model.path"))), ("questions", _questions(run)), ("steps", _steps(run))]
    if setting("rollout.votes") is not None:
        most = f"{'at most ' if setting('rollout.stop_votes') else ''}{setting('rollout.votes')}"
        found.append(("votes", f"{most} to each of {setting('rollout.prompts')} questions a step, "
                               f"{setting('train.samples')} of them trained"))  # fmt: skip
    found += [
        ("algorithm", setting("algorithm")),
        ("labels", setting("reward.label")),
        ("what a vote earns", setting("judge.rule")),
        ("LoRA", _lora(run)),
        ("learning rate", setting("train.learning_rate")),
        ("seed", setting("seed")),
        ("time", _time(run)),
        ("certificate", _certificate(run)),
    ]
    found += _machine(run.starts[-1]) if run.starts else []
    return [(name, str(value)) for name, value in found if value not in (None, "")]


def _lora(run: Run) -> str | None:
    """What is trained beside the weights, if it is."""
    rank, factor = run.settings.get("lora.rank"), run.settings.get("lora.rate_factor")
    return f"rank {rank}, {factor:g} times the learning rate" if rank else None


def _certificate(run: Run) -> str | None:
    """What the canaries say, if there were any."""
    returned, count = run.certificate.get("returned"), run.certificate.get("canaries")
    return f"returns the {returned} model, by {count} canaries" if returned else None


def _last_part(path: Any) -> str | None:
    """The name of a model: a hub name, or the last two parts of a path."""
    if not path:
        return None
    parts = str(path).rstrip("/").split("/")
    return "/".join(parts[-2:])


def _questions(run: Run) -> str | None:
    sizes = ", ".join(f"{count} {called(name)}" for name, count in run.questions.items())
    return (
        f"{sizes}: {_last_part(run.settings.get('data.path'))}" if sizes else _last_part(run.settings.get("data.path"))
    )


def _steps(run: Run) -> str:
    of = f" of {run.planned}" if run.planned and run.steps < run.planned else ""
    of += ", stopped early" if of and run.finished else ""
    episodes = f", {run.episode} an episode" if run.episode else ""
    return f"{run.steps}{of}{episodes}"


def _time(run: Run) -> str | None:
    """Of a finished run the whole, of another the sum of its steps' parts."""
    if run.seconds is not None:
        return f"{_duration(run.seconds)} in all"
    names = ("time/evaluate", "time/sample", "time/vote", "time/update")
    total = sum(row.get(name, 0.0) for row in run.rows for name in names)
    return f"{_duration(total)} in steps so far" if total else None


def _duration(seconds: float) -> str:
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {left} s"


def _machine(start: Mapping[str, Any]) -> list[tuple[str, Any]]:
    packages = ", ".join(f"{name} {start[name]}" for name in ("ttrl_jax", "jax", "flax") if start.get(name))
    python = f", Python {start['python']}" if start.get("python") else ""
    started = str(start.get("started") or "").replace("T", " ").replace("+00:00", " UTC")
    return [("devices", start.get("devices")), ("versions", f"{packages}{python}"), ("last started", started)]
