"""The replication on Turkish word problems: labels of the majority beside true ones, and the merge of both models."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import prepare_word_problems

from ttrl_jax.errors import InputError
from ttrl_jax.report import models
from ttrl_jax.run.metrics import write_text

from .options import Options, Results, Run, Study
from .runs import ROOT, Command, flags
from .shown import NONE, Shown, Table, called, chart, mean_curve

MODEL = "Qwen/Qwen2.5-1.5B-Instruct"
LABELS = ("majority", "truth")
MODELS = ("start", *LABELS, "merged")
# On two cores: a small model that knows some of the built-in questions, which it answers without being told how.
SMALL_MODEL = str(ROOT / "configs" / "turkish_model")
SMALL = {
    "model.dtype": "float32",
    "prompt.max_tokens": 40,
    "prompt.suffix": "",
    "rollout.max_tokens": 48,
    "rollout.prompts": 8,
    "rollout.votes": 32,
    "rollout.temperature": 1.0,
    "train.samples": 32,
    "train.minibatch_prompts": 8,
    "train.micro_tokens": 6144,
    "train.remat": "none",
    "train.learning_rate": 5e-5,
    "train.kl_coef": 0.02,
    "train.b2": 0.99,
    "episodes": 4,
    "eval.every": 0,
    "eval.temperature": 1.0,
    "eval.top_p": 1.0,
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
    """The model that all runs begin with. Raises InputError for more than one."""
    if len(options.models) > 1:
        raise InputError(f"the study turkish takes one model, got {', '.join(options.models)}")
    return options.models[0] if options.models else SMALL_MODEL if options.small else MODEL


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
    """Two runs of each seed: the same questions in the same order."""
    config = f"configs/turkish_math.py:{start_of(options)}"
    keys = {**(SMALL if options.small else {}), **data_of(options), "eval.k": KS, **options.changes}
    return [
        Run(f"{label}-seed{seed}", (label,), seed, config, {**keys, "reward.label": label})
        for seed in options.seeds
        for label in LABELS
    ]


def merge_and_measure(options: Options) -> list[Command]:
    """Of each seed both models as folders, their merge, and an evaluation of four models with other samples than in
    training."""
    runs = replication_runs(options)
    of_seed = {seed: [run for run in runs if run.seed == seed] for seed in options.seeds}
    return [command for seed, pair in of_seed.items() for command in _after(options, seed, pair)]


def _after(options: Options, seed: int, runs: Sequence[Run]) -> list[Command]:
    out, dtype = options.out, "float32" if options.small else "bfloat16"
    folders = {run.arm[0]: out / f"{run.name}-model" for run in runs}
    recipe, merged = out / f"merge-seed{seed}.yml", out / f"merged-seed{seed}-model"
    if not recipe.is_file():
        listed = "".join(f"  - model: {folder.absolute()}\n" for folder in folders.values())
        base = folders["majority"].absolute()
        text = f"models:\n{listed}merge_method: slerp\nbase_model: {base}\nparameters:\n  t: 0.5\ndtype: {dtype}\n"
        write_text(recipe, text)
    found = [
        Command(
            f"export {run.name}",
            ("ttrl_jax.export", str(out / run.name), "--out", str(folder), "--dtype", dtype),
            folder,
        )
        for run, folder in zip(runs, folders.values(), strict=True)
    ]
    found.append(Command(f"merge seed {seed}", ("ttrl_jax.merge", str(recipe), "--out", str(merged)), merged))
    paths = {"start": start_of(options), **{label: str(folder) for label, folder in folders.items()}}
    keys = flags({key: value for key, value in runs[0].settings.items() if key != "reward.label"})
    for name, path in (paths | {"merged": str(merged)}).items():
        where = _evaluation(options, name, seed)
        arguments = ("ttrl_jax.evaluate", "--config", f"configs/turkish_math.py:{path}", *keys, "--out", str(where))
        found.append(Command(f"evaluate {name}, seed {seed}", arguments, where / models.RESULTS))
    return found


def _evaluation(options: Options, name: str, seed: int) -> Path:
    return options.out / "evaluations" / f"{name}-seed{seed}"


def _mean(name: str, each: Sequence[models.Model]) -> models.Model:
    """Of the same model by other seeds: the means of its numbers."""
    results = {
        task: {metric: fmean(model.results[task][metric] for model in each) for metric in each[0].results[task]}
        for task in each[0].results
    }
    return models.Model(name, results)


def show(results: Results, options: Options) -> Shown:
    """The training logs side by side, and four models by every reading."""
    each = {name: [models.read(_evaluation(options, name, seed), name) for seed in options.seeds] for name in MODELS}
    measured = [_mean(name, found) for name, found in each.items()]
    tables, charts = [_logs(results)], {}
    for text in ("reward, whole", "accuracy reward", "responses in the format", "correct samples"):
        lines = {f"labels by {label}": mean_curve(group, LOGS[text]) for (label,), group in results.items()}
        charts[text] = chart(text, text.capitalize(), lines)
    for task in measured[0].results:
        tables += [_readings(task, measured), _seeds(task, each, options.seeds)]
    found = {f"turkish-{bars.name}": [bars] for bars in models.charts(measured)}
    run = results[("majority",)].runs[0]
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


def _seeds(task: str, each: Mapping[str, Sequence[models.Model]], seeds: Sequence[int]) -> Table:
    """What the means are of."""
    metrics = {"accuracy": "pass@1", f"cons@{KS[-1]}": f"maj@{KS[-1]}"}
    rows = [
        [name, text, *(f"{model.results[task][metric]:.3f}" for model in found)]
        for name, found in each.items()
        for text, metric in metrics.items()
    ]
    title = f"each seed by the tag alone, questions {called(task)}"
    return Table(f"turkish-{task}-seeds", title, ["model", "", *(f"seed {seed}" for seed in seeds)], rows)


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
