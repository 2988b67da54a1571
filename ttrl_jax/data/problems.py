"""Questions from a local file, a built-in task or the Hugging Face hub, and the order of their visits.

JSON, JSON Lines and CSV are read with the standard library, Parquet and hub names with `datasets`. The text
formats are kept away from `datasets` because it guesses types: there 025 in a CSV column becomes 25.0, the
JSON text "2024-01-05" a time stamp, 0.12345678901234567 loses its last digits, and "025" in a column that has
a number elsewhere becomes 25. An answer must stay what its author wrote.
"""

import csv
import io
import json
import math
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet

from ttrl_jax.data import generate, options
from ttrl_jax.errors import InputError

BUILTIN = "builtin:"


@dataclass(frozen=True)
class Problem:
    """One question. `truth` is for measuring only and is read by `truths` alone."""

    index: int  # place in the data, from 0: names the question in random keys
    id: str  # the `id` column where every row has its own, else the index
    question: str
    truth: str | None


def truths(batch: Sequence[Problem]) -> list[str] | None:
    """The data set's answers to a batch, or None for data without. Nothing else reads `Problem.truth`."""
    found = [problem.truth for problem in batch if problem.truth is not None]
    return found if len(found) == len(batch) else None


class Problems:
    """Problems in the order of training: each episode is a fresh permutation, cut into steps of `batch`.

    The order depends on (seed, episode) alone, so a resumed run needs no state. Where `batch` does not divide
    their number, each episode leaves out the few at its permutation's end (`drop_last` of the reference).

    Raises InputError if a step wants more problems than there are.
    """

    def __init__(self, items: Sequence[Problem], *, batch: int, seed: int):
        if not 1 <= batch <= len(items):
            raise InputError(
                f"The data has {len(items)} questions and a step wants {batch}: set a batch between 1 and {len(items)}."
            )
        self.items = list(items)
        self.steps_per_episode = len(items) // batch
        self._batch = batch
        self._seed = seed

    def __len__(self) -> int:
        return len(self.items)

    def episode(self, step: int) -> int:
        """The episode, from 0, that training step `step` belongs to."""
        return step // self.steps_per_episode

    def take(self, step: int) -> list[Problem]:
        """The `batch` problems of training step `step`."""
        # The spawn key keeps this stream apart from those seeded with the plain numbers (seed, step, ...).
        sequence = np.random.SeedSequence(self._seed, spawn_key=(self.episode(step),))
        order = np.random.Generator(np.random.PCG64(sequence)).permutation(len(self.items))
        start = step % self.steps_per_episode * self._batch
        return [self.items[i] for i in order[start : start + self._batch]]


def load(
    path: str,
    *,
    split: str,
    question_column: str,
    truth_column: str,
    level: int | None,
    limit: int | None,
    subset: str | None = None,
    seed: int = 0,
) -> list[Problem]:
    """Read the problems of a data set.

    path: a .json (list of objects), .jsonl, .csv (with a header) or .parquet file; "builtin:NAME", a task of
        generate.py; a hub data set's name; or a folder in the hub's layout.
    split: of a hub data set or a folder. A file and a built-in task have no splits.
    question_column, truth_column: used as given, never guessed. Without a truth column (the data has none of
        that name, or the name is empty) every truth is None.
    level: keep the rows whose column `level` is this: a number, or text such as "Level 3"; None keeps all.
    limit: keep the first so many of these; None keeps all.
    subset: of a hub data set that has several.
    seed: with the question's id, fixes the order of the options where the data has the columns of GPQA ("Question",
        "Correct Answer", "Incorrect Answer 1" to "3"): its prompts have the options in lines, its truths are letters
        (`options.with_options`).

    Raises InputError for anything that cannot be read as asked.
    """
    if limit is not None and limit < 1:
        raise InputError(f"The number of questions to keep must be at least 1, not {limit}.")
    if path.startswith(BUILTIN):
        if level is not None:
            raise InputError(f"{path} has no levels: leave data.level at 0.")
        return _builtin(path, with_truth=truth_column != "")[:limit]
    wanted = {question_column, truth_column, "id", *options.COLUMNS} | (set() if level is None else {"level"})
    columns, rows = _read(path, split, subset, wanted=wanted)
    if not rows:
        raise InputError(f"{path} holds no questions.")
    choices = options.has_options(columns, question_column)
    if question_column not in columns and not choices:
        raise InputError(f"{path} has no column {question_column!r} for the question; its columns: {_names(columns)}.")
    if level is not None:
        rows = _of_level(path, columns, rows, level)
        path = f"{path} at level {level}"  # what messages below count rows in
    rows = rows[:limit]
    if choices:
        rows = options.with_options(path, rows, seed=seed)
        columns, question_column, truth_column = ["question", "answer"], "question", truth_column and "answer"
    questions = _questions(path, question_column, rows)
    answers = _answers(path, truth_column, rows) if truth_column in columns else [None] * len(rows)
    ids = _ids(rows)
    return [Problem(i, *parts) for i, parts in enumerate(zip(ids, questions, answers, strict=True))]


def _builtin(path: str, *, with_truth: bool) -> list[Problem]:
    name = path.removeprefix(BUILTIN)
    if name not in generate.TASKS:
        names = ", ".join(BUILTIN + task for task in generate.TASKS)
        raise InputError(f"There is no built-in task {name!r}; there are {names}.")
    pairs = generate.TASKS[name]()
    return [Problem(i, str(i), question, truth if with_truth else None) for i, (question, truth) in enumerate(pairs)]


# ---- columns


def _of_level(path: str, columns: list[str], rows: list[dict[str, Any]], level: int) -> list[dict[str, Any]]:
    if "level" not in columns:
        raise InputError(
            f"{path} has no column 'level', which data.level={level} selects by; its columns: {_names(columns)}. Leave "
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


def _questions(path: str, column: str, rows: list[dict[str, Any]]) -> list[str]:
    values = [row.get(column) for row in rows]
    empty = [i for i, value in enumerate(values) if value is None or (isinstance(value, str) and not value.strip())]
    if empty:
        raise InputError(f"{path}: the question, column {column!r}, is empty in {_row_list(empty)}.")
    other = [i for i, value in enumerate(values) if not isinstance(value, str) or isinstance(value, _Number)]
    if other:
        kind = _kind(values[other[0]])
        raise InputError(f"{path}: the question, column {column!r}, must be text; {_row_list(other)} holds {kind}.")
    return values


def _answers(path: str, column: str, rows: list[dict[str, Any]]) -> list[str | None]:
    found = []
    for i, row in enumerate(rows):
        try:
            found.append(_answer_text(row.get(column)))
        except TypeError as error:
            raise InputError(
                f"{path}: the truth, column {column!r}, must be text or a number; {_row_list([i])} holds {error}."
            ) from error
    missing = [i for i, text in enumerate(found) if text is None]
    if missing and len(missing) < len(rows):
        raise InputError(
            f"{path}: the truth, column {column!r}, is missing in {_row_list(missing)} of {len(rows)}: "
            "fill it in, drop these questions, or run without truths by making the truth column's name empty."
        )
    return found


def _answer_text(value: Any) -> str | None:
    """Text as it is, a number in plain decimals, None if missing; TypeError names what else it is."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, _Number) and re.search("[eE]", value):
        value = float(value)
    if isinstance(value, str):
        return str(value) if value.strip() else None
    if isinstance(value, float) and math.isfinite(value):
        return format(Decimal(repr(value)), "f")
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        return format(value, "f") if isinstance(value, Decimal) else str(value)
    raise TypeError(_kind(value))


def _ids(rows: list[dict[str, Any]]) -> list[str]:
    given = [row.get("id") for row in rows]
    if all(isinstance(value, str | int) for value in given) and len({str(value) for value in given}) == len(rows):
        return [str(value) for value in given]
    return [str(i) for i in range(len(rows))]


def _kind(value: Any) -> str:
    return "a number" if isinstance(value, _Number) else f"a value of type {type(value).__name__}"


def _row_list(rows: list[int]) -> str:
    shown = ", ".join(str(i) for i in rows[:5])
    more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
    return f"row{'s' if len(rows) > 1 else ''} {shown}{more} (the first is 0)"


def _names(columns: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in columns) or "none"


# ---- formats: each reader returns the column names and the rows

Table = tuple[list[str], list[dict[str, Any]]]


class _Number(str):
    """A number of a JSON file, as it is written there."""


def _read(path: str, split: str, subset: str | None, *, wanted: set[str]) -> Table:
    file = Path(path).expanduser()
    suffix = file.suffix.lower()
    if file.is_file():
        if suffix == ".parquet":
            return _table(_parquet(file), wanted)
        if suffix not in _TEXT_FORMATS:
            raise InputError(f"{path} ends in {suffix!r}; data files end in .json, .jsonl, .csv or .parquet.")
        return _TEXT_FORMATS[suffix](path, _text(file))
    if file.is_dir():
        # A cache of its own, thrown away: no stale rows after a file changes, nothing left in the home.
        with tempfile.TemporaryDirectory() as cache:
            return _table(_dataset(str(file), split, subset, cache_dir=cache), wanted)
    # A hub name is NAME or OWNER/NAME; everything else can only have been meant as a file.
    if suffix in (".parquet", *_TEXT_FORMATS) or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", path):
        raise InputError(f"There is no data file {file.absolute()}.")
    return _table(_dataset(path, split, subset, cache_dir=None), wanted)


def _text(file: Path) -> str:
    try:
        # Line ends are left as they are: the CSV reader needs those inside of quotes.
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from error
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}.") from error


def _json_value(text: str, where: str) -> Any:
    try:
        return json.loads(text, parse_int=_Number, parse_float=_Number)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}.") from error
    except RecursionError as error:
        raise InputError(f"{where} is nested too deeply to be read as JSON.") from error


def _json(path: str, text: str) -> Table:
    if not text.strip():
        raise InputError(f"{path} is empty.")
    rows = _json_value(text, path)
    if not isinstance(rows, list):
        raise InputError(f"{path} must hold a list of objects, not one {type(rows).__name__}.")
    return _objects(path, rows)


def _json_lines(path: str, text: str) -> Table:
    lines = enumerate(text.split("\n"), start=1)  # splitlines() would also cut at U+2028, which JSON allows in texts
    return _objects(path, [_json_value(line, f"{path}, line {n},") for n, line in lines if line.strip()])


def _objects(path: str, rows: list[Any]) -> Table:
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise InputError(f"{path}: {_row_list([i])} must be an object with named fields, not {_kind(row)}.")
    return list(dict.fromkeys(name for row in rows for name in row)), rows


def _csv(path: str, text: str) -> Table:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header, *lines = [line for line in reader if line] or [[]]
    except csv.Error as error:
        raise InputError(f"{path} is not CSV: {error} at line {reader.line_num}.") from error
    if len(set(header)) < len(header):
        raise InputError(f"{path} names a column twice; its columns: {_names(header)}.")
    for i, line in enumerate(lines):
        if len(line) != len(header):
            raise InputError(
                f"{path}: {_row_list([i])} has {len(line)} fields and the header {len(header)}: "
                "put text that has commas in double quotes."
            )
    return header, [dict(zip(header, line, strict=True)) for line in lines]


_TEXT_FORMATS: dict[str, Callable[[str, str], Table]] = {".json": _json, ".jsonl": _json_lines, ".csv": _csv}


def _parquet(file: Path) -> datasets.Dataset:
    # `datasets` wraps the table but does not read the file: it would copy it into a cache, and it fails
    # on files without rows.
    try:
        return datasets.Dataset(pyarrow.parquet.read_table(file, partitioning=None))
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{file} cannot be read as Parquet: {_cause(error)}") from error


def _dataset(name: str, split: str, subset: str | None, *, cache_dir: str | None) -> datasets.Dataset:
    try:
        return datasets.load_dataset(name, subset, split=split, cache_dir=cache_dir)
    except ConnectionError as error:
        raise InputError(
            f"There is no file {Path(name).absolute()}, and the hub could not be reached for a data set of "
            "that name: give a local .json, .jsonl, .csv or .parquet file."
        ) from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"The data set {name!r}, split {split!r}, cannot be loaded: {_cause(error)}") from error


def _cause(error: BaseException) -> str:
    """The first line of what went wrong; `datasets` wraps it in an error that says nothing."""
    if isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__ is not None:
        error = error.__cause__
    return (str(error) or type(error).__name__).splitlines()[0]


def _table(data: datasets.Dataset, wanted: set[str]) -> Table:
    """Take out only the wanted columns: others may hold what is slow, or impossible, to decode."""
    names = [name for name in data.column_names if name in wanted]
    return data.column_names, data.select_columns(names).to_list() if names else [{}] * len(data)
