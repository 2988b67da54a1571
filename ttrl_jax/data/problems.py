"""Questions from a local file, a built-in task or the Hugging Face hub, and the order in which training visits them."""

import copy
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np

from ttrl_jax.data import generate, options
from ttrl_jax.data.files import TEXTS, Number, Table, kind, names, read, row_list
from ttrl_jax.errors import InputError

BUILTIN = "builtin:"
# Looked for where the column has its default name, the first of these, and there is none. What is called a solution,
# an output or a label may be anything, and is taken for a truth only by name.
QUESTION_COLUMNS = ("prompt", "question", "problem", "query", "instruction", "messages")
TRUTH_COLUMNS = ("answer", "ground_truth", "reward_model.ground_truth", "final_answer")
_HALF = re.compile("[\ud800-\udfff]")
_SHOWN = 60  # characters of a text in a message

Say = Callable[[str], None]
Truths = Sequence[str | None]
_Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Problem:
    """One question. `truth` is for measuring only and is read by `truths` alone."""

    index: int  # place in the data, from 0: names the question in random keys
    id: str  # the `id` column where every row has its own, else the index
    question: str
    truth: str | None
    level: int | None = None  # of the `level` column, where there is one: results are split by it


def truths(batch: Sequence[Problem]) -> list[str | None] | None:
    """The answers that the data set has for a batch, with None for a question without one; just None if no question has
    one. Nothing else reads `Problem.truth`."""
    found = [problem.truth for problem in batch]
    return None if all(truth is None for truth in found) else found


class Problems:
    """Problems in the order of training, cut into steps of `batch`.

    order: "shuffled", each episode is a fresh permutation; "given", each is in the order of the data; or "vote_share",
    each is in the order that `by_share` gives. It depends only on (seed, episode) and the shares, so a resumed run
    needs no state. If `batch` does not divide the number of
    problems, the last step of an episode has those that are left at its end. With `drop_last`, as in
    the reference, these are left out.

    Raises InputError if a step wants more problems than there are.
    """

    def __init__(self, items: Sequence[Problem], *, batch: int, seed: int, drop_last: bool, order: str = "shuffled"):
        if not 1 <= batch <= len(items):
            raise InputError(
                f"The data has {len(items)} questions and a step wants {batch}: set rollout.prompts between 1 and "
                f"{len(items)}."
            )
        self.items = list(items)
        self.steps_per_episode = steps_of(len(items), batch, drop_last=drop_last)
        self.order = order
        self._batch = batch
        self._seed = seed
        self._places = range(len(items)) if order == "given" else None  # of each episode, where all are alike

    def __len__(self) -> int:
        return len(self.items)

    def episode(self, step: int) -> int:
        """The episode, from 0, that training step `step` belongs to."""
        return step // self.steps_per_episode

    def by_share(self, shares: Sequence[float]) -> "Problems":
        """The same problems, of order "vote_share": those with the highest of `shares` [P] first in each episode, and
        of equal ones the first in the data. drop_last leaves out those at the end."""
        found = copy.copy(self)
        found._places = sorted(range(len(self.items)), key=lambda i: -shares[i])
        return found

    def take(self, step: int) -> list[Problem]:
        """The `batch` problems of training step `step`, or the fewer of the last one of an episode. Raises ValueError
        for the order "vote_share" without `by_share`."""
        start = step % self.steps_per_episode * self._batch
        if self.order == "vote_share" and self._places is None:
            raise ValueError("data.order='vote_share' needs the shares of votes: take problems.by_share(shares)")
        if self._places is not None:
            return [self.items[i] for i in self._places[start : start + self._batch]]
        # The spawn key keeps this stream apart from those seeded with the plain numbers (seed, step, ...).
        sequence = np.random.SeedSequence(self._seed, spawn_key=(self.episode(step),))
        order = np.random.Generator(np.random.PCG64(sequence)).permutation(len(self.items))
        return [self.items[i] for i in order[start : start + self._batch]]


def steps_of(questions: int, batch: int, *, drop_last: bool) -> int:
    """Steps of `batch` questions in an episode."""
    return questions // batch if drop_last else -(-questions // batch)


def load(
    path: str,
    *,
    split: str,
    question_column: str,
    truth_column: str,
    level: int | None,
    limit: int | None,
    subset: str | None = None,
    read_truths: Callable[[Truths], Truths] = lambda given: given,
    say: Say = lambda line: None,
    seed: int = 0,
) -> list[Problem]:
    """Read the problems of a data set.

    path: a .json or .jsonl (objects, or texts alone), .csv or .tsv (with a header), .txt (a question a line) or
        .parquet file; "builtin:NAME", a task of generate.py; a hub data set's name; or a folder in the hub's layout.
    split, subset: of a hub data set or a folder. A file and a built-in task have neither.
    question_column, truth_column: names of columns; a name with dots leads into a column of objects. If a name is the
        default ("prompt", "answer") and there is no such column, one of QUESTION_COLUMNS or TRUTH_COLUMNS is taken, if
        just one of them is there. A question is text, or messages with one turn of the user. Without a truth column
        every truth is None; a row may be without a truth.
    level: keep the rows whose column `level` is this: a number, or text such as "Level 3"; None keeps all.
    limit: keep the first so many of these; None keeps all.
    read_truths: turns the truths of all rows, as the file has them, into those of the problems.
    say: gets a line about a choice that was made, or about something unusual.
    seed: if the data has the columns of GPQA ("Question", "Correct Answer", "Incorrect Answer 1" to "3"), the seed and
        the id of a question decide the order of its options. The prompts have the options in lines, and the truths are
        letters (`options.with_options`).

    Raises InputError for anything that cannot be read as asked.
    """
    if limit is not None and limit < 1:
        raise InputError(f"The number of questions to keep must be at least 1, not {limit}.")
    if path.startswith(BUILTIN):
        if level is not None:
            raise InputError(f"{path} has no levels: leave data.level at 0.")
        return _builtin(path, with_truth=truth_column != "")[:limit]
    columns, rows = _rows(path, {question_column, truth_column}, split=split, subset=subset)
    if options.has_options(columns, question_column):
        rows = options.with_options(path, rows[:limit], seed=seed)
        columns, question_column, truth_column = list(rows[0]), "question", truth_column and "answer"
    table = columns, rows
    question_column = TEXTS if columns == [TEXTS] else _found(table, question_column, QUESTION_COLUMNS, "question", say)
    if not _has(table, question_column):
        raise InputError(_no_question(path, question_column, table))
    truth_column = _found(table, truth_column, TRUTH_COLUMNS, "truth", say)
    if level is not None:
        rows = _of_level(path, columns, rows, level)
        path = f"{path} at level {level}"  # what messages below count rows in
    rows = rows[:limit]
    questions = _questions(path, question_column, rows, say)
    answers = list(read_truths(_answers(path, truth_column, rows)))
    ids = _ids(rows, say)
    for what, texts in (("question", questions), ("truth", answers), ("id", ids)):
        _require_whole(path, what, texts)
    levels = [_level(row.get("level")) for row in rows]
    return [Problem(i, *parts) for i, parts in enumerate(zip(ids, questions, answers, levels, strict=True))]


def _rows(path: str, named: set[str], *, split: str, subset: str | None) -> Table:
    """The columns that may be used, those that are `named` among them, and all rows."""
    wanted = {*named, *QUESTION_COLUMNS, *TRUTH_COLUMNS, "id", "level"}
    wanted |= {name.partition(".")[0] for name in wanted}
    columns, rows = read(path, split=split, subset=subset, wanted=wanted | options.COLUMNS)
    if not rows:
        raise InputError(f"{path} holds no questions.")
    return columns, rows


def _builtin(path: str, *, with_truth: bool) -> list[Problem]:
    name = path.removeprefix(BUILTIN)
    if name not in generate.TASKS:
        there = ", ".join(BUILTIN + task for task in generate.TASKS)
        raise InputError(f"There is no built-in task {name!r}; there are {there}.")
    pairs = generate.TASKS[name]()
    return [Problem(i, str(i), question, truth if with_truth else None) for i, (question, truth) in enumerate(pairs)]


# ---- columns


def _field(row: dict[str, Any], name: str) -> Any:
    """What a row has under a name, with dots for what lies deeper; None where it has nothing."""
    if name in row:
        return row[name]
    first, dot, rest = name.partition(".")
    return _field(row[first], rest) if dot and isinstance(row.get(first), dict) else None


def _has(table: Table, name: str) -> bool:
    columns, rows = table
    return name in columns or ("." in name and any(_field(row, name) is not None for row in rows))


def _found(table: Table, name: str, known: Sequence[str], what: str, say: Say) -> str:
    """The column that is meant by `name`: another of the known ones where it has its default name, the first of these,
    is not there, and one of the others alone is."""
    there = [other for other in known[1:] if _has(table, other)]
    if name != known[0] or _has(table, name) or len(there) != 1:
        return name
    say(f"the {what} is the column {there[0]!r}, as there is no {name!r} (data.{what}_column)")
    return there[0]


def _no_question(path: str, column: str, table: Table) -> str:
    there = [name for name in QUESTION_COLUMNS if _has(table, name)]
    several = f" {' and '.join(map(repr, there))} may be meant:" if len(there) > 1 else ""
    return (
        f"{path} has no column {column!r} for the question; its columns: {names(table[0])}.{several} Set "
        "data.question_column to one of them."
    )


def _of_level(path: str, columns: list[str], rows: _Rows, level: int) -> _Rows:
    if "level" not in columns:
        raise InputError(
            f"{path} has no column 'level', which data.level={level} selects by; its columns: {names(columns)}. Leave "
            "data.level at 0: a file such as MATH-TTT.json does not know its levels, and one such as MATH-L3-TTT.json "
            "is a level by itself."
        )
    levels = [_level(row.get("level")) for row in rows]
    if level not in levels:
        found = ", ".join(str(other) for other in sorted({other for other in levels if other is not None}))
        raise InputError(f"{path} has no question of level {level}; its levels: {found or 'none'}.")
    return [row for row, its in zip(rows, levels, strict=True) if its == level]


def _level(value: Any) -> int | None:
    """3 for 3, 3.0, "3" and "Level 3"; None for what names no level, such as the "Level ?" of two MATH questions."""
    match = re.fullmatch(r"(?:level)?\s*([0-9]{1,9})(?:\.0)?", str(value).strip(), re.IGNORECASE)
    return int(match[1]) if match else None


def _questions(path: str, column: str, rows: _Rows, say: Say) -> list[str]:
    values = [_field(row, column) for row in rows]
    left_out: set[str] = set()
    for i, value in enumerate(values):
        if isinstance(value, list):
            try:
                values[i] = _asked(value, left_out)
            except ValueError as error:
                raise InputError(
                    f"{path}: the question, column {column!r}, must be text or messages with one turn of the user; "
                    f"{row_list([i])} {error}."
                ) from error
    empty = [i for i, value in enumerate(values) if value is None or (isinstance(value, str) and not value.strip())]
    if empty:
        raise InputError(f"{path}: the question, column {column!r}, is empty in {row_list(empty)}: drop or fill it.")
    other = [i for i, value in enumerate(values) if not isinstance(value, str) or isinstance(value, Number)]
    if other:
        found = kind(values[other[0]])
        raise InputError(f"{path}: the question, column {column!r}, must be text; {row_list(other)} holds {found}.")
    for role in sorted(left_out):
        cure = "; prompt.system sets one" if role == "system" else ""
        say(f"the messages' turns of the {role} are left out{cure}")
    if repeated := len(values) - len(set(values)):
        say(f"{repeated} of {len(values)} questions repeat an earlier one")
    return values


def _asked(messages: list[Any], left_out: set[str]) -> str:
    """What the user says in messages; the roles of a turn before and an answer behind it are added to `left_out`.
    Raises ValueError, in words, where that is not one turn of text."""
    if not all(isinstance(turn, dict) and "role" in turn and "content" in turn for turn in messages):
        found = "turns without role or content" if isinstance(messages[0], dict) else kind(messages[0])
        raise ValueError(f"holds a list of {found}")
    roles = [str(turn["role"]) for turn in messages]
    if not re.fullmatch("(system )?user( assistant)?", " ".join(roles)):
        raise ValueError(f"holds turns of {', '.join(roles) or 'nobody'}")
    left_out |= set(roles) - {"user"}
    content = messages[roles.index("user")]["content"]
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("holds a turn that is not all text")
    return "".join(texts)


def _answers(path: str, column: str, rows: _Rows) -> list[str | None]:
    found = []
    for i, row in enumerate(rows):
        try:
            found.append(_answer_text(_field(row, column)))
        except TypeError as error:
            raise InputError(
                f"{path}: the truth, column {column!r}, must be text or a number; {row_list([i])} holds {error}."
            ) from error
    return found


def _answer_text(value: Any) -> str | None:
    """Text as it is, a number in plain decimals, of a list of one what is in it, None if missing; TypeError names what
    else it is."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, Number) and re.search("[eE]", value):
        value = float(value)
    if isinstance(value, str):
        return str(value) if value.strip() else None
    if isinstance(value, float) and math.isfinite(value):
        return format(Decimal(repr(value)), "f")
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        return format(value, "f") if isinstance(value, Decimal) else str(value)
    raise TypeError(kind(value))


def question_of(row: dict[str, Any], column: str) -> str:
    """The question of one row by itself, looked for as `load` does. Raises ValueError, in words, where there is none
    that can be asked."""
    there = [name for name in QUESTION_COLUMNS if _field(row, name) is not None]
    if column == QUESTION_COLUMNS[0] and column not in there and len(there) == 1:
        column = there[0]
    value = _field(row, column)
    if isinstance(value, list):
        value = _asked(value, set())
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"has no question in {column!r}; its columns: {names(list(row))}")
    if not isinstance(value, str) or isinstance(value, Number):
        raise ValueError(f"must have text for the question, {column!r}, not {kind(value)}")
    if _HALF.search(value):
        raise ValueError("has half a character (a surrogate without its pair) in its question")
    return value


def _ids(rows: _Rows, say: Say) -> list[str]:
    given = [row.get("id") for row in rows]
    if all(isinstance(value, str | int) for value in given) and len({str(value) for value in given}) == len(rows):
        return [str(value) for value in given]
    if any(value is not None for value in given):
        say("the column 'id' does not name each question apart; they are numbered instead")
    return [str(i) for i in range(len(rows))]


def _require_whole(path: str, what: str, texts: Truths) -> None:
    """Raise InputError for half a character, which no tokenizer and no file takes."""
    halves = [i for i, text in enumerate(texts) if text is not None and _HALF.search(text)]
    if halves:
        shown = ascii(texts[halves[0]][:_SHOWN])
        raise InputError(
            f"{path}: the {what} has half a character (a surrogate without its pair) in {row_list(halves)}: "
            f"{shown}; repair it, or drop the question."
        )
