"""What a study runs: settings checked before anything starts, one process at a time, and nothing twice."""

import ast
import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any, NoReturn

import huggingface_hub
from ml_collections import ConfigDict

from ttrl_jax import commands
from ttrl_jax.data.problems import steps_of
from ttrl_jax.errors import InputError
from ttrl_jax.report.data import Run as Found
from ttrl_jax.report.data import read_run
from ttrl_jax.run import folder
from ttrl_jax.source import is_local
from ttrl_jax.tasks.sets import read_questions

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("sample", "vote", "update")  # of a step, in whose seconds no evaluation is
_NOTHING = 1e-2  # seconds: an evaluation that was not due
_STEPS = 3  # that are measured before a time is said
_PATHS = ("model.path", "data.path", "eval.tasks", "task")  # may be spelled in several ways: the run itself checks them


@dataclass(frozen=True)
class Run:
    """One training run of a study."""

    name: str  # of its folder
    arm: tuple[str, ...]  # what it is, but for its seed: runs of one arm are put together
    seed: int
    config: str  # as of --config: FILE.py or FILE.py:MODEL
    changes: Mapping[str, Any] = field(default_factory=dict)  # key -> value

    @property
    def settings(self) -> dict[str, Any]:
        return {**self.changes, "seed": self.seed}

    def command(self, out: Path) -> list[str]:
        """What trains it."""
        return train(self.config, flags(self.settings), out / self.name)


@dataclass(frozen=True)
class Command:
    """Something else that a study runs, after its runs; not again where `makes` is there."""

    title: str
    arguments: tuple[str, ...]  # of `python -m`
    makes: Path


@dataclass(frozen=True)
class Budget:
    """How much a run samples."""

    steps: int
    responses: int  # of a step
    evaluations: int
    evaluated: int  # responses of an evaluation


def train(config: str, changes: Sequence[str], workdir: Path) -> list[str]:
    """The command of a training run; changes: --config.a.b=value arguments."""
    command = ["ttrl_jax.train", "--config", config, *changes, "--workdir", str(workdir)]
    return [sys.executable, "-m", *command]


def flags(changes: Mapping[str, Any]) -> list[str]:
    """Keys and values as arguments of a command."""
    return [f"--config.{key}={value}" for key, value in changes.items()]


def settings(given: Sequence[str]) -> dict[str, Any]:
    """The keys and values of --config.a.b=value arguments, of the types that the keys have. Raises InputError."""
    known, found = commands.flat(commands.defaults()), {}
    for each in given:
        key, equals, text = each.removeprefix("--config.").partition("=")
        if not each.startswith("--config.") or not equals:
            raise InputError(f"unexpected argument {each!r}; a setting is changed by --config.a.b=value")
        if key not in known:
            raise InputError(f"unknown config key {key}; configs/default.py lists every key")
        found[key] = value_of(text, like=known[key])
    return found


def run_settings(given: Sequence[str]) -> dict[str, Any]:
    """`settings` of all runs, which differ in their seeds. Raises InputError, for a seed too."""
    keys = settings(given)
    if "seed" in keys:
        raise InputError("the seeds are given by --seeds, not by --config.seed")
    return keys


def numbers(text: str, flag: str) -> tuple[int, ...]:
    """Whole numbers with commas between. Raises InputError."""
    found = text.split(",")
    if not all(each.isdecimal() for each in found) or len(set(found)) < len(found):
        raise InputError(f"{flag} takes whole numbers, each once, with commas between, got {text!r}")
    return tuple(int(each) for each in found)


def names(text: str, flag: str, known: Iterable[str]) -> tuple[str, ...]:
    """Some of `known`, with commas between. Raises InputError."""
    found, known = text.split(","), list(known)
    if strange := [each for each in found if each not in known]:
        raise InputError(f"{flag} knows {', '.join(known)}, got {strange[0]!r}")
    if len(set(found)) < len(found):
        raise InputError(f"{flag} takes each once, got {text!r}")
    return tuple(found)


def value_of(text: str, *, like: Any) -> Any:
    """A value out of its text: as it is where it is one of texts, else a literal of Python."""
    if isinstance(like, str):
        return text
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        found = text  # such as of a key that is unset and takes a text
    return (found,) if isinstance(like, tuple) and not isinstance(found, tuple | list) else found


def config_of(run: Run) -> ConfigDict:
    """The config of a run. Raises InputError if there is none."""
    path, _, argument = run.config.partition(":")
    file = ROOT / Path(path).expanduser()
    if not file.is_file():
        raise InputError(f"there is no config file {path}; see configs/ for those that exist")
    spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(argument) if argument else module.get_config()
    for key, value in run.settings.items():
        section, _, leaf = key.rpartition(".")
        try:
            (config[section] if section else config)[leaf] = value
        except TypeError as error:
            raise InputError(
                f"--config.{key}={value!r} is of the wrong type; configs/default.py has its type"
            ) from error
    return config


def check(runs: Sequence[Run]) -> dict[str, Budget]:
    """How much each run samples, by name. Raises InputError for the first whose model or questions are not there:
    nothing has been started then."""
    questions: dict[str, list[int]] = {}
    models: set[str] = set()
    found = {}
    for run in runs:
        config = config_of(run)
        if config.model.path not in models:
            _require_model(config.model.path, run)
            models.add(config.model.path)
        asked = repr((config.data, config.eval.tasks, config.task))
        if asked not in questions:
            try:
                questions[asked] = [len(each.items) for each in read_questions(config)]
            except InputError as error:
                raise InputError(f"the run {run.name} lacks its questions: {error}") from error
        found[run.name] = _budget(config, questions[asked])
    return found


def _budget(config: ConfigDict, questions: Sequence[int]) -> Budget:
    prompts, every = min(config.rollout.prompts, questions[0]), config.eval.every
    steps = config.episodes * steps_of(questions[0], prompts, drop_last=config.data.drop_last)
    evaluations = 1 + len(range(0, steps, every)) if every and steps else 2
    samples = config.eval.samples + config.eval.greedy
    return Budget(steps, prompts * config.rollout.votes, evaluations, samples * sum(questions))


def _require_model(path: str, run: Run) -> None:
    if is_local(path):
        return
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise InputError(f"the run {run.name} lacks its model: there is no {path}; give another by --models")
    try:
        huggingface_hub.hf_hub_download(path, "config.json")
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"the run {run.name} lacks its model: {path} is not here and could not be fetched from the hub ({reason}); "
            "give another by --models, or --small"
        ) from error


def finished(run: Run, out: Path) -> bool:
    """Whether a run is there already. Raises InputError if its folder has one of other settings, or is damaged."""
    where = out / run.name
    if not (where / folder.CONFIG).is_file():
        return False
    made = commands.flat(folder.made_with(where, flag="--out").config)
    for key, value in run.settings.items():
        asked = list(value) if isinstance(value, tuple) else value
        if key in made and key not in _PATHS and made[key] != asked:
            raise InputError(
                f"{where} was made with {key}={made[key]!r}, and {asked!r} is asked for; choose another --out"
            )
    try:
        return folder.read_summary(where) is not None
    except ValueError as error:
        raise InputError(f"{where / folder.SUMMARY} is damaged ({error}); delete the folder") from error


# ---------------------------------------------------------------------- how long it takes


@dataclass(frozen=True)
class Pace:
    """Measured seconds: to the first step, of a training response, and of an evaluated one."""

    start: float
    response: float
    evaluated: float

    def seconds(self, budget: Budget) -> float:
        trained = budget.steps * budget.responses * self.response
        return self.start + trained + budget.evaluations * budget.evaluated * self.evaluated


def pace_of(found: Found, budget: Budget, *, elapsed: float | None = None) -> Pace | None:
    """What the rows of a run say, None before three steps are done. elapsed: seconds since the run was started, where
    it still goes on.

    The first step and the first evaluation compile: what a response takes is known from later ones. While a run has few
    of them the fastest counts, as others may compile too. Where there was no other evaluation, a response of one takes
    no longer than its sampling takes in training.
    """
    rows = [row for row in found.rows if "time/update" in row]
    if len(rows) < _STEPS:
        return None
    asked = [seconds for row in rows if (seconds := row.get("time/evaluate", 0.0)) > _NOTHING]
    middle = median if found.finished else min
    usual = middle(sum(row[f"time/{part}"] for part in PARTS) for row in rows[1:])
    evaluated = asked[-1] / max(1, budget.evaluated) if asked else 0.0
    if len(asked) == 1:
        evaluated = min(evaluated, middle(row["time/sample"] for row in rows[1:]) / budget.responses)
    done = len(asked) + found.finished  # the last has no row of its own
    whole = found.seconds if found.finished and found.seconds is not None else elapsed or 0.0
    start = max(0.0, whole - usual * len(rows) - evaluated * budget.evaluated * done)
    return Pace(start, usual / budget.responses, evaluated)


def spoken(seconds: float) -> str:
    """A time in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def left(paces: Sequence[Pace], budgets: Sequence[Budget]) -> float:
    """Seconds that runs of these budgets take, at the mean of the paces."""
    mean = Pace(*(fmean(getattr(pace, name) for pace in paces) for name in ("start", "response", "evaluated")))
    return sum(mean.seconds(budget) for budget in budgets)


def execute(runs: Sequence[Run], budgets: Mapping[str, Budget], out: Path) -> int:
    """Train the runs that are not there, one after the other -> the exit code of the first that fails, or 0."""
    missing = [run for run in runs if not finished(run, out)]
    for run in runs:
        if run not in missing:
            print(f"== {run.name} is there already", flush=True)
    paces = _known(runs, missing, budgets, out)
    total = [budgets[run.name] for run in missing]
    responses = sum(each.steps * each.responses + each.evaluations * each.evaluated for each in total)
    print(f"{len(missing)} runs to train: {sum(each.steps for each in total)} steps, {responses} responses", flush=True)
    if paces and missing:
        print(f"about {spoken(left(paces, total))}, as the runs that are there took", flush=True)
    elif missing:
        print(f"how long that takes is said after {_STEPS} steps of the first", flush=True)
    for i, run in enumerate(missing):
        print(f"== run {i + 1} of {len(missing)}: {run.name}", flush=True)
        code = _trained(run, [budgets[each.name] for each in missing[i:]], out, told=bool(paces))
        if code:
            return code
        paces = _known(runs, missing[i + 1 :], budgets, out)
        if paces and missing[i + 1 :]:
            rest = left(paces, [budgets[each.name] for each in missing[i + 1 :]])
            print(f"about {spoken(rest)} left", flush=True)
    return 0


def _known(runs: Sequence[Run], missing: Sequence[Run], budgets: Mapping[str, Budget], out: Path) -> list[Pace]:
    there = [run for run in runs if run not in missing]
    found = [pace_of(read_run(out / run.name, run.name), budgets[run.name]) for run in there]
    return [pace for pace in found if pace is not None]


def _trained(run: Run, budgets: Sequence[Budget], out: Path, *, told: bool) -> int:
    """Train one run. budgets: of this one and those after it, whose time is said once it is known, unless `told`."""
    began = time.monotonic()
    process = subprocess.Popen(run.command(out), cwd=ROOT)
    try:
        while process.poll() is None:
            time.sleep(1)
            where = out / run.name
            if told or not (where / folder.CONFIG).is_file():
                continue
            pace = pace_of(read_run(where, run.name), budgets[0], elapsed=time.monotonic() - began)
            if pace is not None:
                told = True
                print(f"about {spoken(left([pace], budgets))} in all, by {_STEPS} steps of {run.name}", flush=True)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    return process.returncode


def leave(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """End the process with what `main` returns for its arguments; with 2 and one sentence for an InputError."""
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def follow(later: Sequence[Command]) -> int:
    """Run the other commands whose results are not there -> the exit code of the first that fails, or 0."""
    for each in later:
        if each.makes.exists():
            print(f"== {each.title} is there already", flush=True)
            continue
        print(f"== {each.title}", flush=True)
        code = subprocess.run([sys.executable, "-m", *each.arguments], cwd=ROOT).returncode
        if code:
            return code
    return 0
