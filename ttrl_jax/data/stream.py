"""A stream of questions: from a file, from a folder or a file that grows, or from standard input.

.jsonl, .txt and standard input (JSON Lines) are read a line at a time, as they are asked for; the other formats of
files.py are read whole. What cannot be read is part of the stream too: it has an error in the place of its question. No
truth is read.
"""

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ttrl_jax.data import files, generate, options
from ttrl_jax.data.problems import BUILTIN, QUESTION_COLUMNS, question_of
from ttrl_jax.errors import InputError

STDIN = "-"
MOST_BYTES = 1 << 20  # of a line
LONGEST_ID = 200  # characters
_BY_LINE = (".jsonl", ".txt")
_WHOLE = (".json", ".csv", ".tsv", ".parquet")
_LOOK_AGAIN = 0.2  # seconds between two looks at what grows
_SETTLED = 1.0  # seconds without a change after which a file in a folder that grows is taken to be whole
_SAID = 300  # characters of an error

Row = dict[str, Any]
Found = tuple[Row | None, str]  # a row, or None and what is wrong


@dataclass(frozen=True)
class Asked:
    """A place in the stream."""

    number: int  # from 0, names the question in random keys
    id: str | int  # of the question's own where it has one, else the number
    question: str | None  # None where nothing can be asked
    error: str | None  # why not, in words
    source: str | None  # the file's name where a folder is read

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of what was asked, by which a stream that goes on is recognised."""
        facts = [self.id, self.question, self.error]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Waiting:
    """How to go on at the end of what there is."""

    follow: bool  # wait for more, until `stop`
    stop: threading.Event

    def more(self) -> bool:
        """Whether to look again, after a while."""
        return self.follow and not self.stop.wait(_LOOK_AGAIN)


def read_stream(
    path: str,
    *,
    column: str,
    split: str,
    subset: str | None,
    seed: int,
    waiting: Waiting,
    say: Callable[[str], None],
    order: Sequence[str] = (),
) -> Iterator[Asked]:
    """The places of a stream, in their order, each when it is asked for.

    path: as of `problems.load`; "-", standard input; or a folder, whose files are read by name, each once, when it is
    whole. column: of the question, as in `load`. split, subset, seed: as in `load`. order: the files of a folder that
    come first. say: gets a line about what is passed over.

    Raises InputError for what cannot be read at all, now if that is known.
    """
    way = {"column": column, "split": split, "subset": subset, "seed": seed}
    if path == STDIN:
        file = open(0, "rb", closefd=False)  # noqa: SIM115 - not sys.stdin, which a thread would hold at the end
        return _numbered(_from_lines(file, ".jsonl", Waiting(False, waiting.stop)), None, way)
    place = Path(path).expanduser()
    if place.is_dir():
        return _folder(place, way, waiting, say, order)
    suffix = place.suffix.lower()
    if waiting.follow and suffix not in _BY_LINE:
        raise InputError(
            f"--follow is for a folder, or for a file with a question on each line ({', '.join(_BY_LINE)}); got {path}"
        )
    return _numbered(_rows(path, way, waiting), None, way)


def _folder(
    folder: Path, way: dict[str, Any], waiting: Waiting, say: Callable[[str], None], order: Sequence[str]
) -> Iterator[Asked]:
    """The places of all files, one file after the other."""
    begun: set[str] = set()
    first, number = list(order), 0
    for name in first:
        if not (folder / name).is_file():
            raise InputError(f"{folder / name} is missing, some of whose questions have been answered; put it back")
    alone = Waiting(False, waiting.stop)
    while True:
        there = sorted(entry.name for entry in os.scandir(folder) if entry.is_file() and entry.name not in begun)
        ready = [name for name in there if not waiting.follow or _settled(folder / name)]
        name = first.pop(0) if first else next(iter(ready), None)
        if name is None:
            if not waiting.more():
                return
            continue
        begun.add(name)
        if name.startswith(".") or Path(name).suffix.lower() not in _BY_LINE + _WHOLE:
            say(f"{folder / name} is passed over: it is no file of questions ({', '.join(_BY_LINE + _WHOLE)})")
            continue
        try:
            for asked in _numbered(_rows(str(folder / name), way, alone), name, way, start=number):
                number = asked.number + 1
                yield asked
        except InputError as error:
            yield _place(number, None, _short(str(error)), name, way)
            number += 1


def _settled(file: Path) -> bool:
    """Whether a file has not been changed for a while. A time that is to come is none of this machine's clock."""
    age = time.time() - file.stat().st_mtime
    return not -_SETTLED < age < _SETTLED


def _rows(path: str, way: dict[str, Any], waiting: Waiting) -> Iterator[Found]:
    """The rows of one file or data set."""
    file = Path(path).expanduser()
    suffix = file.suffix.lower()
    if suffix in _BY_LINE and file.is_file():
        return _from_lines(file.open("rb"), suffix, waiting)
    if path.startswith(BUILTIN):
        name = path.removeprefix(BUILTIN)
        if name not in generate.TASKS:
            raise InputError(f"There is no built-in task {name!r}; there are {', '.join(generate.TASKS)}.")
        return iter([({files.TEXTS: question}, "") for question, _ in generate.TASKS[name]()])
    wanted = {way["column"], *QUESTION_COLUMNS, "id"}
    wanted |= {name.partition(".")[0] for name in wanted} | options.COLUMNS
    columns, rows = files.read(path, split=way["split"], subset=way["subset"], wanted=wanted)
    if options.has_options(columns, way["column"]):
        rows = options.with_options(path, rows, seed=way["seed"])
    return iter([(row, "") for row in rows])


def _from_lines(file: BinaryIO, suffix: str, waiting: Waiting) -> Iterator[Found]:
    """The rows of a file with one on each line. Empty lines are passed over, as files.py does."""
    read = _json_row if suffix == ".jsonl" else _text_row
    with file:
        for i, line in enumerate(_lines(file, waiting)):
            if line is None:
                yield None, f"the line has more than {MOST_BYTES} bytes"
                continue
            try:
                text = line.decode("utf-8-sig" if i == 0 else "utf-8").strip()
                found = read(text) if text else None
            except UnicodeDecodeError as error:
                yield None, f"the line is not UTF-8 text (byte {error.start})"
            except ValueError as error:
                yield None, str(error)
            else:
                if found is not None:
                    yield found, ""


def _lines(file: BinaryIO, waiting: Waiting) -> Iterator[bytes | None]:
    """Lines, None for each that is too long. One without an end is the last; where the file is followed, it is none."""
    held, dropped = b"", False
    while True:
        piece = file.readline(MOST_BYTES + 1)
        if not piece:
            if _shrunk(file):
                raise InputError(f"{file.name} has become shorter while it was read; begin anew with another --out")
            if waiting.more():
                continue
            break
        held += piece
        ended = piece.endswith(b"\n")
        if len(held) > MOST_BYTES + ended:
            held, dropped = b"", True
        if ended:
            yield None if dropped else held
            held, dropped = b"", False
    if (held or dropped) and not waiting.follow:
        yield None if dropped else held


def _shrunk(file: BinaryIO) -> bool:
    return file.seekable() and os.fstat(file.fileno()).st_size < file.tell()


def _json_row(text: str) -> Row:
    try:
        value = json.loads(text, parse_int=files.Number, parse_float=files.Number)
    except json.JSONDecodeError as error:
        raise ValueError(f"the line is not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("the line is nested too deeply to be read as JSON") from error
    if isinstance(value, str) and not isinstance(value, files.Number):
        return {files.TEXTS: value}
    if not isinstance(value, dict):
        raise ValueError(f"the line must be an object with named fields, or text, not {files.kind(value)}")
    return value


def _text_row(text: str) -> Row:
    return {files.TEXTS: text}


def _numbered(rows: Iterator[Found], source: str | None, way: dict[str, Any], *, start: int = 0) -> Iterator[Asked]:
    for number, (row, error) in enumerate(rows, start=start):
        yield _place(number, row, error, source, way)


def _place(number: int, row: Row | None, error: str, source: str | None, way: dict[str, Any]) -> Asked:
    """What stands at one place: its question, or what is wrong with it."""
    if row is None:
        return Asked(number, number, None, error, source)
    name = number
    try:
        name = _id(row.get("id"), number)
        only = len(row) == 1 and files.TEXTS in row  # text alone, which has no columns
        return Asked(number, name, question_of(row, files.TEXTS if only else way["column"]), None, source)
    except ValueError as wrong:
        return Asked(number, name, None, _short(f"the row {wrong}"), source)


def _id(value: Any, number: int) -> str | int:
    """The id of a row, or its number where it has none. Raises ValueError for what names nothing."""
    if value is None:
        return number
    if isinstance(value, str) and len(value) <= LONGEST_ID and value.isprintable():
        whole = isinstance(value, files.Number) and value.removeprefix("-").isdecimal()
        return int(value) if whole else str(value)
    if type(value) is int:
        return value
    raise ValueError(f"must have for its id text of at most {LONGEST_ID} printable characters, or a whole number")


def _short(text: str) -> str:
    """An error that quotes no more of its cause than is good, and nothing that no file takes."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= _SAID else f"{text[: _SAID - 3]}..."
