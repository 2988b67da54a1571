"""The sets of questions that a model is evaluated on: the config's own, and those that eval.tasks names."""

import functools
import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from ttrl_jax.data.problems import Problem, load, truths
from ttrl_jax.data.prompts import turns
from ttrl_jax.errors import InputError
from ttrl_jax.tasks.task import Task, by_strategies, from_file
from ttrl_jax.tasks.truths import read_truths

OWN = "data"  # the name of the config's own questions
CANARIES = "canaries"
_LEVEL = "@level="

_CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"


@dataclass(frozen=True)
class Questions:
    """Questions as they were read, before it is known how the model is asked."""

    name: str  # in the names of metrics and files
    path: str
    settings: ConfigDict  # of the config whose task they are of
    items: list[Problem]
    notes: tuple[str, ...]  # what was found, or is out of the ordinary, in sentences


@dataclass(frozen=True)
class QuestionSet:
    """Questions of one task."""

    name: str
    path: str
    truth_column: str
    items: list[Problem]
    task: Task
    notes: tuple[str, ...] = ()


def read_questions(config: ConfigDict) -> tuple[Questions, ...]:
    """The config's own questions, named "data", and then those of eval.tasks in their order. It takes none of the
    values that the model decides.

    An entry of eval.tasks is NAME=PATH or NAME, either with @level=N behind it, which takes the questions of one level
    alone. If configs/NAME.py exists, its data.*, its task, and its
    reward.extract, format and locale are used, with PATH in place of its data.path if there is one. Any other name is a
    label and needs a PATH; the config's own settings are used.

    Raises InputError for entries that cannot be used, and for data that cannot be read.
    """
    _check_names(config.eval.tasks)
    found = [_questions(OWN, config.data.path, config, level=config.data.level, seed=config.seed)]
    for entry in config.eval.tasks:
        name, path, level = _split(entry)
        if _is_config(name):
            settings = importlib.import_module(f"configs.{name}").get_config()
            level = level or settings.data.level
            found.append(_questions(name, path or settings.data.path, settings, level=level, seed=config.seed))
        else:
            # data.level is one of data.path.
            found.append(_questions(name, path, config, level=level, seed=config.seed))
    return tuple(found)


def read_canaries(config: ConfigDict, trained: Questions) -> Questions | None:
    """The questions of canary.path, read as data.path is; None without one. trained: those that are trained on.

    Raises InputError for data that cannot be read, for a question without a truth, and for one that is trained on, or
    there twice: of such a question the certificate would promise what it cannot.
    """
    path = config.canary.path
    if not path:
        return None
    whole = ConfigDict(config.as_configdict())
    whole.data.limit = 0  # one of data.path, as the level is
    found = _questions(CANARIES, path, whole, level=0, seed=config.seed)
    if lacking := (truths(found.items) or [None] * len(found.items)).count(None):
        raise InputError(
            f"canary.path={path}: {lacking} of {len(found.items)} questions have no truth, by which canaries are "
            "measured; add them, or drop these questions"
        )
    seen = {_words(problem.question): f"is trained on ({trained.path})" for problem in trained.items}
    for problem in found.items:
        words = _words(problem.question)
        if words in seen:
            raise InputError(
                f"canary.path={path}: the question {problem.id}, {problem.question[:60]!r}, {seen[words]}; take it "
                "out, as canaries are questions that are not trained on, each there once"
            )
        seen[words] = "is there twice"
    return found


def _words(text: str) -> tuple[str, ...]:
    """A text without what white space makes of it."""
    return tuple(text.split())


def to_come(config: ConfigDict) -> tuple[Questions, ...]:
    """The questions of a stream before it has begun: none yet, and no others beside them."""
    return (Questions(OWN, config.data.path, config, [], ()),)


def with_tasks(read: Sequence[Questions], config: ConfigDict) -> tuple[QuestionSet, ...]:
    """Questions that `read_questions` has read of a config, with their tasks; every value of `config` is set. How they
    are asked is the config's own, unless a task's file says it. Raises InputError for what `task_of` refuses."""
    own = task_of(config, asked_by=config)  # the label of a set of its own has the very same
    return tuple(
        QuestionSet(
            each.name,
            each.path,
            each.settings.data.truth_column,
            each.items,
            task_of(each.settings, asked_by=config) if each.name != OWN and _is_config(each.name) else own,
            each.notes,
        )
        for each in read
    )


def task_of(settings: ConfigDict, *, asked_by: ConfigDict) -> Task:
    """The task of a config: that of its Python file, or by reward.extract, format and locale; then questions are asked
    as prompt.* of the config `asked_by` says. Raises InputError if there is none."""
    if settings.task:
        return from_file(settings.task)
    reward, prompt = settings.reward, asked_by.prompt
    return by_strategies(
        strategies=reward.extract,
        locale=reward.locale,
        tags=reward.format,
        thinking=prompt.thinking,
        messages=functools.partial(turns, system=prompt.system, prefix=prompt.prefix, suffix=prompt.suffix),
    )


def _questions(name: str, path: str, settings: ConfigDict, *, level: int, seed: int) -> Questions:
    data, notes = settings.data, []
    read = functools.partial(
        read_truths, way=data.truth_extract, path=path, of_formulas=settings.task == "", say=notes.append
    )
    items = load(
        path,
        split=data.split,
        subset=data.subset or None,
        question_column=data.question_column,
        truth_column=data.truth_column,
        limit=data.limit or None,
        level=level or None,
        read_truths=read,
        say=notes.append,
        seed=seed,
    )
    if name != OWN and level:
        notes.append(f"questions of level {level} alone")
    return Questions(name, path, settings, items, tuple(notes))


def _check_names(entries: Sequence[str]) -> None:
    """Raise InputError for the first entry whose form or name is wrong, before anything is read."""
    seen: set[str] = set()
    for entry in entries:
        if not isinstance(entry, str):
            raise InputError(f"eval.tasks must hold texts such as 'NAME=PATH', got {entry!r}")
        name, path, _ = _split(entry)
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise InputError(
                f"the eval.tasks entry {entry!r} must be NAME=PATH or NAME, the name made of letters, digits, - and _"
            )
        if name == OWN:
            raise InputError(f"the eval.tasks entry {entry!r} must have another name: {OWN!r} means data.path")
        if name in seen:
            raise InputError(f"eval.tasks names {name!r} twice; rename one")
        seen.add(name)
        if not path and entry.startswith(f"{name}="):
            raise InputError(f"the eval.tasks entry {entry!r} has no path after the =")
        if not path and not _is_config(name):
            raise InputError(f"the eval.tasks entry {entry!r} has no path and there is no configs/{name}.py")
        if not path and name == "default":
            raise InputError("the eval.tasks entry 'default' has no path, and configs/default.py names none")


def _split(entry: str) -> tuple[str, str, int]:
    """Name, path, which may itself hold a =, and level; the path is empty and the level 0 where there is none."""
    rest, marked, level = entry.rpartition(_LEVEL)
    if marked and not re.fullmatch("[1-9][0-9]{0,8}", level):
        raise InputError(f"the eval.tasks entry {entry!r} must end in {_LEVEL}N, N a whole number from 1, such as 3")
    name, _, path = (rest if marked else entry).partition("=")
    return name, path, int(level) if marked else 0


def _is_config(name: str) -> bool:
    return (_CONFIGS / f"{name}.py").is_file()
