"""What a study is asked for, and how a model on a task becomes a run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ttrl_jax.errors import InputError
from ttrl_jax.report.data import Group

from .runs import ROOT, Command, Run
from .shown import Shown

# The tasks of the paper, by the name of their config: where the hub has their questions.
TASKS = {
    "aime": "HuggingFaceH4/aime_2024",
    "amc": "AI-MO/aimo-validation-amc",
    "math500": "HuggingFaceH4/MATH-500",
    "gpqa": "Idavidrein/gpqa",
}
TABLE1 = (
    "Qwen/Qwen2.5-Math-1.5B",
    "Qwen/Qwen2.5-Math-7B",
    "Qwen/Qwen2.5-7B",
    "Qwen/Qwen2.5-32B",
    "meta-llama/Llama-3.1-8B-Instruct",
    "Qwen/Qwen3-8B",
)
TABLE2 = (
    "sail/Llama-3.2-3B-Oat-Zero",
    "meta-llama/Llama-3.2-3B-Instruct",
    "mistralai/Mistral-Nemo-Instruct-2407",
    "mistralai/Ministral-8B-Instruct-2410",
    "deepseek-ai/deepseek-math-7b-instruct",
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
)
THINKING = ("Qwen/Qwen3-8B", "Skywork/Skywork-OR1-Math-7B")

# In the place of the paper's models and tasks, on two cores: a config, and built-in questions.
SMALL_MODELS = {"ways": "quickstart", "noise": "quickstart_sums", "noisy": "quickstart_noisy"}
SMALL_TASKS = ("carries", "sums")


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    out: Path
    small: bool
    models: tuple[str, ...]  # empty: the study's own
    tasks: Mapping[str, str]  # name -> where its questions are, "" for the usual place; empty: the study's own
    seeds: tuple[int, ...]
    changes: Mapping[str, Any]  # of every run
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # key -> values, all crossed
    lists: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # key -> values, one key at a time
    parts: tuple[int, int] = (2000, 598)  # questions to train on and held out, where a study draws them

    def models_or(self, large: Sequence[str], small: Sequence[str]) -> Sequence[str]:
        return self.models or (small if self.small else large)

    def tasks_or(self, large: Sequence[str], small: Sequence[str]) -> Sequence[str]:
        return tuple(self.tasks) or (small if self.small else large)


Results = Mapping[tuple[str, ...], Group]  # arm -> its runs, one of each seed


@dataclass(frozen=True)
class Study:
    """One table or figure."""

    name: str
    what: str
    runs: Callable[[Options], list[Run]]
    show: Callable[[Results, Options], Shown]
    before: Callable[[Options], None] = lambda options: None  # what has to be written first
    after: Callable[[Options], list[Command]] = lambda options: []  # what follows the runs


def runs_of(
    options: Options,
    model: str,
    task: str,
    *,
    arm: Sequence[str],
    differing: Mapping[str, Any] | None = None,
    **changes: Any,
) -> list[Run]:
    """A model on a task with each seed. differing: keys in which the runs of the study differ, and their values;
    changes: other keys, with __ for the dot, of which those of the command line go before. Raises InputError for a
    model or a task that is none, and where the command line sets what the runs differ in."""
    config, own = _small(model, task) if options.small else _large(options, model, task)
    differing = differing or {}
    if told := [key for key in differing if key in options.changes]:
        raise InputError(f"--config.{told[0]} is what the runs of this study differ in; leave it out")
    keys = {key.replace("__", "."): value for key, value in changes.items()}
    name = "-".join(part.rpartition("/")[2].replace("=", "_").replace(" ", "_") for part in arm)
    return [
        Run(f"{name}-seed{seed}", tuple(arm), seed, config, {**own, **keys, **options.changes, **differing})
        for seed in options.seeds
    ]


def _small(model: str, task: str) -> tuple[str, dict[str, Any]]:
    if model not in SMALL_MODELS or task not in SMALL_TASKS:
        raise InputError(
            f"with --small the models are {', '.join(SMALL_MODELS)} and the tasks {', '.join(SMALL_TASKS)}, got "
            f"{model!r} and {task!r}"
        )
    held_out = (f"held_out=builtin:{task}.held_out",)
    return f"configs/{SMALL_MODELS[model]}.py", {"data.path": f"builtin:{task}.train", "eval.tasks": held_out}


def _large(options: Options, model: str, task: str) -> tuple[str, dict[str, Any]]:
    if not (ROOT / "configs" / f"{task}.py").is_file():
        raise InputError(f"there is no task {task!r}: --tasks takes names of configs, such as {', '.join(TASKS)}")
    given = options.tasks.get(task, "")
    changes: dict[str, Any] = {"data.path": given or TASKS.get(task, "")}
    if given and task == "math500":  # whose config names the column of the hub's set
        changes["data.question_column"] = "prompt"
    if not given and task == "gpqa":
        changes["data.subset"] = "gpqa_diamond"
    if not changes["data.path"]:
        raise InputError(f"where the questions of {task} are is not known; give --tasks {task}=PATH")
    return f"configs/{task}.py:{model}", changes
