"""The sets of questions that a model is evaluated on: the config's own, and those that eval.tasks names."""

import functools
import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from ttrl_jax.data.problems import Problem, load
from ttrl_jax.errors import InputError
from ttrl_jax.reward.extract import Answer, extract, in_format

OWN = "data"  # the name of the config's own questions

_CONFIGS = Path(__file__).resolve().parent.parent / "configs"


@dataclass(frozen=True)
class Task:
    """Questions to evaluate on, with the way to read their answers."""

    name: str  # in the names of metrics and files
    path: str
    truth_column: str
    items: list[Problem]
    extract: Callable[[str], Answer | None]
    in_format: Callable[[str], bool] | None  # whether a response is in reward.format; None without a format
    readings: dict[str, Callable[[str], Answer | None]]  # by name, those of `_readings`; none without a format


def read_tasks(config: ConfigDict) -> tuple[Task, ...]:
    """The config's own questions, named "data", and then those of eval.tasks in their order.

    An entry is NAME=PATH or NAME. If configs/NAME.py exists, its data.* and its reward.extract, format and locale are
    used, with PATH in place of its data.path if there is one. Any other name is a label and needs a PATH; the config's
    own settings are used.

    Raises InputError for entries that cannot be used, for data that cannot be read, and for a format that no response
    of a model that thinks can have.
    """
    _check_names(config.eval.tasks)
    thinking = config.prompt.thinking
    tasks = [_task(OWN, config.data.path, config, level=config.data.level, thinking=thinking)]
    for entry in config.eval.tasks:
        name, path = _split(entry)
        if _is_config(name):
            settings = importlib.import_module(f"configs.{name}").get_config()
            task = _task(name, path or settings.data.path, settings, level=settings.data.level, thinking=thinking)
        else:
            task = _task(name, path, config, level=0, thinking=thinking)  # the level is one of data.path
        tasks.append(task)
    return tuple(tasks)


def _task(name: str, path: str, settings: ConfigDict, *, level: int, thinking: bool) -> Task:
    data = settings.data
    items = load(
        path,
        split=data.split,
        question_column=data.question_column,
        truth_column=data.truth_column,
        limit=data.limit or None,
        level=level or None,
    )
    reward, tags = settings.reward, tuple(settings.reward.format)
    if thinking and "think" in tags:
        raise InputError(
            f"reward.format={tags} cannot hold where the model thinks before it answers, as its thoughts, <think> and "
            "all, are taken off first; leave 'think' out of reward.format"
        )
    read = functools.partial(extract, thinking=thinking, locale=reward.locale, tags=tags)
    reader = functools.partial(read, strategies=tuple(reward.extract))
    reader("")  # raises if it cannot read
    if not tags:
        return Task(name, path, data.truth_column, items, reader, None, {})
    formed = functools.partial(in_format, tags=tags, thinking=thinking)
    flexible = functools.partial(read, strategies=(*reward.extract, "last_number"))
    return Task(name, path, data.truth_column, items, reader, formed, _readings(reader, formed, flexible))


def _readings(
    reader: Callable[[str], Answer | None], formed: Callable[[str], bool], flexible: Callable[[str], Answer | None]
) -> dict[str, Callable[[str], Answer | None]]:
    """Two more ways to read what was sampled with a format, for measuring alone.

    strict: what `reader` finds in responses that are in the format; others have no answer.
    flexible: what `reader` finds or else the last number, wherever it stands.
    """
    return {"strict": lambda response: reader(response) if formed(response) else None, "flexible": flexible}


def _check_names(entries: Sequence[str]) -> None:
    """Raise InputError for the first entry whose form or name is wrong, before anything is read."""
    seen: set[str] = set()
    for entry in entries:
        if not isinstance(entry, str):
            raise InputError(f"eval.tasks must hold texts such as 'NAME=PATH', got {entry!r}")
        name, path = _split(entry)
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise InputError(
                f"the eval.tasks entry {entry!r} must be NAME=PATH or NAME, the name made of letters, digits, - and _"
            )
        if name == OWN:
            raise InputError(f"the eval.tasks entry {entry!r} must have another name: {OWN!r} means data.path")
        if name in seen:
            raise InputError(f"eval.tasks names {name!r} twice; rename one")
        seen.add(name)
        if not path and "=" in entry:
            raise InputError(f"the eval.tasks entry {entry!r} has no path after the =")
        if not path and not _is_config(name):
            raise InputError(f"the eval.tasks entry {entry!r} has no path and there is no configs/{name}.py")
        if not path and name == "default":
            raise InputError("the eval.tasks entry 'default' has no path, and configs/default.py names none")


def _split(entry: str) -> tuple[str, str]:
    """Name and path, which may itself hold a =; the path is empty where there is none."""
    name, _, path = entry.partition("=")
    return name, path


def _is_config(name: str) -> bool:
    return (_CONFIGS / f"{name}.py").is_file()
