"""A task: how a question becomes a prompt, how an answer is read, and which answers are the same.

Mathematics in boxes, letters of a choice and numbers in tags are made by `by_strategies`. A task of one's own is a
Python file whose `get_task()` returns a Task.
"""

import functools
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ttrl_jax.data.prompts import Turn
from ttrl_jax.errors import InputError
from ttrl_jax.reward.choices import offered
from ttrl_jax.reward.equivalence import Clusters, cluster, same, surely
from ttrl_jax.reward.extract import Answer, extract, in_format

Reader = Callable[[str], Answer | None]  # response -> answer


def as_written(one: Answer, other: Answer) -> bool | None:
    """What is sure of two answers where only `classes` can compare them: nothing, unless they are written alike."""
    return True if one == other else None


@dataclass(frozen=True)
class Task:
    """One kind of question. Nothing of it sees a truth but `same`, when answers are measured."""

    name: str
    messages: Callable[[str], list[Turn]]  # question -> turns of a chat, or the pieces of a plain text
    extract: Reader  # of responses to any question
    classes: Callable[[Sequence[Answer | None]], Clusters]  # of all answers to a question; see equivalence.classes_by
    same: Callable[[Answer, Answer], bool]  # of two, for flips, offline labels and measuring
    in_format: Callable[[str], bool] | None = None  # whether a response is in the format; None without a format
    readings: Mapping[str, Reader] = field(default_factory=dict)  # by name, more ways to read, for measuring alone
    reader_of: Callable[[str], Reader] | None = None  # question -> in place of `extract`, where the question matters
    surely: Callable[[Answer, Answer], bool | None] = as_written  # for votes that stop; see equivalence.surely

    def reader(self, question: str | None) -> Reader:
        """How responses to a question are read; None: to any."""
        return self.extract if self.reader_of is None or question is None else self.reader_of(question)


def by_strategies(
    *,
    strategies: Sequence[str] = ("boxed",),
    locale: str = "en",
    tags: Sequence[str] = (),
    thinking: bool = False,
    messages: Callable[[str], list[Turn]] = lambda question: [{"role": "user", "content": question}],
) -> Task:
    """The task whose answers `extract.extract` reads by these settings, and which compares them as mathematics.

    A choice is among the letters that its question offers, where it shows them. Raises InputError for settings
    that cannot be, and for a format that no response of a model that thinks can have.
    """
    tags = tuple(tags)
    if thinking and "think" in tags:
        raise InputError(
            f"reward.format={tags} cannot hold where the model thinks before it answers, as its thoughts, <think> and "
            "all, are taken off first; leave 'think' out of reward.format"
        )
    read = functools.partial(extract, thinking=thinking, locale=locale, tags=tags)
    reader = functools.partial(read, strategies=tuple(strategies))
    reader("")  # raises if it cannot read
    formed = functools.partial(in_format, tags=tags, thinking=thinking) if tags else None
    choice = "choice" in strategies
    return Task(
        " or ".join(strategies),
        messages,
        reader,
        cluster,
        same,
        formed,
        {} if formed is None else _readings(read, tuple(strategies), tags, formed),
        reader_of=(lambda question: functools.partial(reader, offered=offered(question))) if choice else None,
        surely=surely,
    )


def _readings(
    read: Callable[..., Answer | None], strategies: Sequence[str], tags: Sequence[str], formed: Callable[[str], bool]
) -> dict[str, Reader]:
    """Three more ways to read what was sampled with a format.

    strict: what the strategies find in responses that are in the format; others have no answer.
    flexible: what stands between the last pair of the format's last tag, in the format or not.
    last_number: what the strategies find or else the last number, wherever it stands.
    """
    return {
        "strict": lambda response: read(response, strategies=strategies) if formed(response) else None,
        "flexible": functools.partial(read, strategies=(f"tag:{tags[-1]}",)),
        "last_number": functools.partial(read, strategies=(*strategies, "last_number")),
    }


def from_file(path: str) -> Task:
    """The task that `get_task()` of a Python file returns. Raises InputError if there is none."""
    found = loaded(path, key="task")
    if "get_task" not in found:
        raise InputError(f"the task file {path} has no function get_task(); define one that returns a Task")
    task = found["get_task"]()
    if not isinstance(task, Task):
        raise InputError(f"get_task() of {path} must return a ttrl_jax.tasks.task.Task, got a {type(task).__name__}")
    return task


def loaded(path: str, *, key: str) -> dict[str, Any]:
    """What a Python file defines, by name. key: what names the file, such as task or eval.scorer, for messages. Raises
    InputError if it cannot be imported."""
    file, kind = Path(path).expanduser(), key.rpartition(".")[2]
    if not file.is_file():
        raise InputError(f"there is no file {file.absolute()}; set {key} to a Python file, or leave it empty")
    spec = importlib.util.spec_from_file_location(f"ttrl_jax_{kind}_{file.stem}", file)
    if spec is None:
        raise InputError(f"{key}={path} is no Python file; its name must end in .py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where pickle and dataclasses look for it
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise InputError(f"the {kind} file {path} is not valid Python: {error.msg}, line {error.lineno}") from error
    except ImportError as error:
        raise InputError(f"the {kind} file {path} could not be imported: {error}") from error
    return vars(module)
