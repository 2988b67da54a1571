"""The replication on Turkish word problems: labels of the majority beside true ones, and the merge of both models."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import prepare_word_problems

from configs import smollm2
from ttrl_jax.errors import InputError
from ttrl_jax.report import models
from ttrl_jax.run.metrics import write_text

from .options import Options, Results, Run, Study
from .runs import Command, flags
from .shown import NONE, Shown, Table, called, chart, mean_curve

MODEL = "Qwen/Qwen2.5-1.5B-Instruct"
LABELS = ("majority", "truth")
MODELS = ("start", *LABELS, "merged")
# On two cores: few votes of few tokens, on a quarter of the questions.
SMALL = {
    "model.dtype": "float32",
    "prompt.max_tokens": 320,
    "rollout.max_tokens": 96,
    "rollout.prompts": 8,
    "rollout.votes": 8,
    "train.samples": 8,
    "train.micro_tokens": 2048,
    "train.remat": "none",
    "train.learning_rate": 5e-6,
    "episodes": 2,
    "eval.every": 0,
    "data.limit": 24,
    "reward.allow_silence": True,
}
# What a training log shows, and what the metric is called: accuracy apart from the format.
LOGS = {
    "reward, whole": "vote/rewards/mean",
    "accuracy reward": "vote/accuracy_reward",
    "responses in the format": "vote/format_rate",
    "correct samples": "audit/ground_truth_reward",
    "label accuracy": "audit/label_accuracy",
    "majority ratio": "vote/majority_ratio",
}
KS = (1, 2, 4, 8)
READINGS = {
    "strict": "strict_",
    "flexible": "flexible_",
    "tag only": "",
    "or last number": "last_number_",
}


def start_of(options: Options) -> str:
    """The model that both runs begin with. Raises InputError where there is none."""
    if options.models:
        [model] = options.models
        return model
    return smollm2.get_config().model.path if options.small else MODEL


def data_of(options: Options) -> dict:
    """The keys of the questions. Raises InputError where none are given that the replication could have."""
    given = options.tasks.get("turkish", "")
    if strange := [name for name in options.tasks if name != "turkish"]:
        raise InputError(f"the study turkish has one task, --tasks turkish=PATH, got {strange[0]!r}")
    if not given and options.small:
        return {}  # the built-in ones
    if not given:
        raise InputError(
            "the study turkish lacks its questions: give --tasks turkish=DIR, with the train.jsonl and test.jsonl that "
            "scripts/prepare_word_problems.py makes, or turkish=FILE, questions in Turkish to draw from, or --small"
        )
    where = Path(given).expanduser()
    where = where if where.is_dir() else options.out / "data"
    return {"data.path": str(where / "train.jsonl"), "eval.tasks": (f"held_out={where / 'test.jsonl'}",)}


def prepare(options: Options) -> None:
    """Out of a file of questions in Turkish draw those with whole numbers as answers, by the seed, in two parts."""
    given = options.tasks.get("turkish", "")
    data = options.out / "data"
    if not given or Path(given).expanduser().is_dir() or (data / "test.jsonl").is_file():
        return
    train, test = options.parts
    drawn = [f"--train={train}", f"--test={test}", f"--seed={options.seeds[0]}", f"--out={data}"]
    for arguments in (["sample", given, *drawn], ["finish", str(data)]):
        if prepare_word_problems.main(arguments):
            raise InputError(f"no questions could be drawn from {given}, see above; lower --parts, or give others")


def replication_runs(options: Options) -> list[Run]:
    """Two runs of one seed: the same questions in the same order."""
    if len(options.seeds) > 1:
        raise InputError(f"the study turkish takes one seed, as it merges two models, got {len(options.seeds)}")
    [seed] = options.seeds
    config = f"configs/turkish_math.py:{start_of(options)}"
    keys = {**(SMALL if options.small else {}), **data_of(options), "eval.k": KS, **options.changes}
    return [Run(f"{label}-seed{seed}", (label,), seed, config, {**keys, "reward.label": label}) for label in LABELS]


def merge_and_measure(options: Options) -> list[Command]:
    """Both models as folders, their merge, and an evaluation of four models with other samples than in training."""
    runs, out = replication_runs(options), options.out
    folders = {run.arm[0]: out / f"{run.arm[0]}-model" for run in runs}
    dtype = "float32" if options.small else "bfloat16"
    recipe = out / "merge.yml"
    if not recipe.is_file():
        listed = "".join(f"  - model: {folder.absolute()}\n" for folder in folders.values())
        base = folders["majority"].absolute()
        text = f"models:\n{listed}merge_method: slerp\nbase_model: {base}\nparameters:\n  t: 0.5\ndtype: {dtype}\n"
        write_text(recipe, text)
    found = [
        Command(
            f"export {label}",
            ("ttrl_jax.export", str(out / run.name), "--out", str(folders[label]), "--dtype", dtype),
            folders[label],
        )
        for run, label in zip(runs, LABELS, strict=True)
    ]
    merged = out / "merged-model"
    found.append(Command("merge", ("ttrl_jax.merge", str(recipe), "--out", str(merged)), merged))
    paths = {"start": start_of(options), **{label: str(folder) for label, folder in folders.items()}}
    for name, path in (paths | {"merged": str(merged)}).items():
        where = out / "evaluations" / name
        keys = flags({key: value for key, value in runs[0].settings.items() if key != "reward.label"})
        arguments = ("ttrl_jax.evaluate", "--config", f"configs/turkish_math.py:{path}", *keys, "--out", str(where))
        found.append(Command(f"evaluate {name}", arguments, where / models.RESULTS))
    return found


def show(results: Results, options: Options) -> Shown:
    """The training logs side by side, and four models by every reading."""
    measured = [models.read(options.out / "evaluations" / name, name) for name in MODELS]
    tables, charts = [_logs(results)], {}
    for text in ("reward, whole", "accuracy reward", "responses in the format", "correct samples"):
        lines = {f"labels by {label}": mean_curve(group, LOGS[text]) for (label,), group in results.items()}
        charts[text] = chart(text, text.capitalize(), lines)
    for task in measured[0].results:
        tables.append(_readings(task, measured))
    found = {f"turkish-{bars.name}": [bars] for bars in models.charts(measured)}
    [run] = results[("majority",)].runs
    counts = ", ".join(f"{count} {called(task)}" for task, count in run.questions.items())
    said = [f"Questions: {counts}. The replication has 2,000 to train on and 598 held out."]
    return Shown(tables, {"turkish-logs": list(charts.values())} | found, said)


def _logs(results: Results) -> Table:
    rows = []
    for text, metric in LOGS.items():
        row = [text]
        for label in LABELS:
            curve = [y for _, y in mean_curve(results[label,], metric)]
            size = results[label,].runs[0].episode or 1
            row += [f"{fmean(part):.3f}" if part else NONE for part in (curve[:size], curve[-size:])]
        rows.append(row)
    head = ["", *(f"{label}: {when} episode" for label in LABELS for when in ("first", "last"))]
    return Table("turkish-logs", "training logs, the same questions in the same order", head, rows)


def _readings(task: str, measured: Sequence[models.Model]) -> Table:
    rows = []
    for model in measured:
        numbers = model.results[task]
        for reading, prefix in READINGS.items():
            valid = numbers[f"{prefix}valid_rate"] if prefix else 1 - numbers["no_answer_rate"]
            kinds = [f"{prefix}{kind}@{k}" for kind in ("pass", "maj") for k in KS]
            shown = [numbers.get(name) for name in (f"{prefix}pass@1", *kinds)]
            cells = [NONE if x is None else f"{x:.3f}" for x in shown]
            rows.append([model.name, reading, f"{valid:.3f}", *cells])
    head = ["model", "reading", "valid", "accuracy", *(f"{kind}@{k}" for kind in ("pass", "cons") for k in KS)]
    return Table(f"turkish-{task}", f"four models, questions {called(task)}", head, rows)


STUDIES = (
    Study(
        "turkish",
        "word problems in Turkish: majority and true labels, and the merge of both",
        replication_runs,
        show,
        prepare,
        merge_and_measure,
    ),
)
