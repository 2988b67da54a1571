"""Rows of a data file, of a folder in the hub's layout, or of a hub data set.

JSON, JSON Lines, CSV, TSV and plain text are read with the standard library, Parquet and hub names with `datasets`. The
text formats are kept away from `datasets` because it guesses types: there 025 in a CSV column becomes 25.0, the JSON
text "2024-01-05" a time stamp, 0.12345678901234567 loses its last digits, and "025" in a column that has a number
elsewhere becomes 25. An answer must stay what its author wrote.
"""

import csv
import functools
import io
import json
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet

from ttrl_jax.errors import InputError

Table = tuple[list[str], list[dict[str, Any]]]  # the names of the columns, and the rows

TEXTS = "prompt"  # the one column of what holds nothing but texts
_PACKED = (".gz", ".zip", ".zst", ".xz", ".bz2")


class Number(str):
    """A number of a JSON file, as it is written there."""


def read(path: str, *, split: str, subset: str | None, wanted: set[str]) -> Table:
    """The columns and rows of a data set; of a file for `datasets` the rows have the `wanted` columns alone.

    split, subset: of a hub data set or a folder. Raises InputError for what cannot be read.
    """
    if "://" in path:
        raise InputError(
            f"data.path is the address {path}, which is not read; download it and give the file, or give a hub data "
            "set by its name, OWNER/NAME"
        )
    file = Path(path).expanduser()
    suffix = file.suffix.lower()
    if file.is_file():
        if suffix == ".parquet":
            return _table(_parquet(file), wanted)
        if suffix in _PACKED:
            raise InputError(f"{path} is packed ({suffix}); unpack it, and give the file that was in it.")
        if suffix not in _TEXT_FORMATS:
            raise InputError(f"{path} ends in {suffix!r}; data files end in {_ENDINGS}.")
        return _TEXT_FORMATS[suffix](path, _text(file))
    if file.is_dir():
        # A cache of its own, thrown away: no stale rows after a file changes, nothing left in the home.
        with tempfile.TemporaryDirectory() as cache:
            return _table(_dataset(str(file), split, subset, cache_dir=cache), wanted)
    if "*" in path:
        raise InputError(f"data.path is the pattern {path}; put the files into a folder of their own, and give that.")
    # A hub name is NAME or OWNER/NAME; everything else can only have been meant as a file.
    meant = suffix in (".parquet", *_TEXT_FORMATS, *_PACKED)
    if meant or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", path):
        raise InputError(f"There is no data file {file.absolute()}.")
    return _table(_dataset(path, split, subset, cache_dir=None), wanted)


def kind(value: Any) -> str:
    """What a value is, in words."""
    return "a number" if isinstance(value, Number) else f"a value of type {type(value).__name__}"


def row_list(rows: Sequence[int]) -> str:
    """The first few of these numbers of rows, in words."""
    shown = ", ".join(str(i) for i in rows[:5])
    more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
    return f"row{'s' if len(rows) > 1 else ''} {shown}{more} (the first is 0)"


def names(columns: Sequence[str]) -> str:
    """Names of columns, in words."""
    return ", ".join(repr(name) for name in columns) or "none"


# ---- text formats


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
        return json.loads(text, parse_int=Number, parse_float=Number)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}.") from error
    except RecursionError as error:
        raise InputError(f"{where} is nested too deeply to be read as JSON.") from error


def _json(path: str, text: str) -> Table:
    if not text.strip():
        raise InputError(f"{path} is empty.")
    try:
        value = _json_value(text, path)
    except InputError as error:
        if not (isinstance(error.__cause__, json.JSONDecodeError) and error.__cause__.msg == "Extra data"):
            raise
        return _json_lines(path, text)  # an object on each line, under the other's name
    return _rows(path, value)


def _json_lines(path: str, text: str) -> Table:
    lines = enumerate(text.split("\n"), start=1)  # splitlines() would also cut at U+2028, which JSON allows in texts
    try:
        values = [_json_value(line, f"{path}, line {n},") for n, line in lines if line.strip()]
    except InputError as error:
        try:
            return _rows(path, _json_value(text, path))  # one list over many lines, under the other's name
        except InputError:
            raise error from None
    return _rows(path, values[0] if len(values) == 1 and _holds_rows(values[0]) else values)


def _holds_rows(value: Any) -> bool:
    return isinstance(value, list) or (isinstance(value, dict) and isinstance(value.get("data"), list))


def _rows(path: str, value: Any) -> Table:
    """A list of objects or of texts, or {"data": such a list}."""
    if not _holds_rows(value):
        raise InputError(
            f'{path} must hold a list of objects or of texts, or {{"data": such a list}}, not one '
            f"{type(value).__name__}."
        )
    rows = value if isinstance(value, list) else value["data"]
    if rows and all(isinstance(row, str) and not isinstance(row, Number) for row in rows):
        return [TEXTS], [{TEXTS: row} for row in rows]
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise InputError(f"{path}: {row_list([i])} must be an object with named fields, not {kind(row)}.")
    return list(dict.fromkeys(name for row in rows for name in row)), rows


def _lines(path: str, text: str) -> Table:
    return [TEXTS], [{TEXTS: line.strip()} for line in text.split("\n") if line.strip()]


def _csv(path: str, text: str, *, delimiter: str, name: str) -> Table:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    try:
        header, *lines = [line for line in reader if line] or [[]]
    except csv.Error as error:
        raise InputError(f"{path} is not {name}: {error} at line {reader.line_num}.") from error
    if len(set(header)) < len(header):
        raise InputError(f"{path} names a column twice; its columns: {names(header)}.")
    for i, line in enumerate(lines):
        if len(line) != len(header):
            raise InputError(
                f"{path}: {row_list([i])} has {len(line)} fields and the header {len(header)}: "
                f"put text that has {'commas' if delimiter == ',' else 'tabs'} in double quotes."
            )
    return header, [dict(zip(header, line, strict=True)) for line in lines]


_TEXT_FORMATS: dict[str, Callable[[str, str], Table]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".csv": functools.partial(_csv, delimiter=",", name="CSV"),
    ".tsv": functools.partial(_csv, delimiter="\t", name="TSV"),
    ".txt": _lines,
}
_ENDINGS = ", ".join(_TEXT_FORMATS) + " or .parquet"


# ---- by `datasets`

# What it says without a configuration's name, or with a wrong one, and then those that there are.
_NO_CONFIG = re.compile(r"(?:Config name is missing|BuilderConfig .{1,200}? not found).*?(\[.*?\])")


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
            f"that name: give a local {_ENDINGS} file."
        ) from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        if found := _NO_CONFIG.search(" ".join(str(error).split())):
            there = ", ".join(re.findall(r"'([^']*)'", found[1]))
            given = "has several subsets" if subset is None else f"has no subset {subset!r}"
            raise InputError(f"The data set {name!r} {given}; set data.subset to one of {there}.") from error
        raise InputError(f"The data set {name!r}, split {split!r}, cannot be loaded: {_cause(error)}") from error


def _cause(error: BaseException) -> str:
    """The first line of what went wrong; `datasets` wraps it in an error that says nothing."""
    if isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__ is not None:
        error = error.__cause__
    return (str(error) or type(error).__name__).splitlines()[0]


def _table(data: datasets.Dataset, wanted: set[str]) -> Table:
    """Take out only the wanted columns: others may hold what is slow, or impossible, to decode."""
    found = [name for name in data.column_names if name in wanted]
    return data.column_names, data.select_columns(found).to_list() if found else [{}] * len(data)
