"""A JSON Lines file that grows, and survives the death of who writes it."""

import fcntl
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from ttrl_jax.errors import InputError

_BLOCK = 1 << 16  # bytes
STDOUT = 1


class Log:
    """The lines of a file, or stdout. A line is whole where it has its end: what a process left without is cut off."""

    def __init__(self, path: Path | None, *, begins: str, flag: str, say: Callable[[str], None]):
        """Open the file, made if need be, and count its lines. path: None is stdout. begins: what every line begins
        with, by which our files are known. flag: what sets the path. say: gets a line where something is cut off, or
        where the file system has no locks. Raises InputError if another process writes the file, or if it is no such
        file: nothing is cut off then."""
        self.path, self.there = path, 0  # there: how many lines an earlier process wrote
        if path is None:
            self._file = os.dup(STDOUT)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._file)
            raise InputError(f"{path} is being written by another process; choose another {flag}") from error
        except OSError as error:
            say(f"{path} is on a file system without locks ({error.strerror}): let no second process write there")
        self.there, end = _whole_lines(self._file)
        for at in {0, end}:
            found = os.pread(self._file, len(begins), at)
            if not begins.encode().startswith(found):
                os.close(self._file)
                raise InputError(f"{path} is there, and is no file that this command has begun; choose another {flag}")
        if cut := os.fstat(self._file).st_size - end:
            say(f"{path} ended in half a line: {cut} bytes are cut off, and written again")
            os.ftruncate(self._file, end)
        os.lseek(self._file, end, os.SEEK_SET)

    def rows(self) -> Iterator[dict[str, Any]]:
        """What an earlier process wrote, from the first line on. Raises InputError for a line that is none of ours."""
        if not self.there:
            return
        with self.path.open(encoding="utf-8", newline="\n") as file:
            for i, line in enumerate(itertools.islice(file, self.there)):
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise InputError(f"{self.path}, line {i + 1}, is not JSON; choose another file") from error
                if not isinstance(row, dict):
                    raise InputError(f"{self.path}, line {i + 1}, is no JSON object; choose another file")
                yield row

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows. They are on the disk when the call returns."""
        data = memoryview(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "backslashreplace")
        )
        while data:
            data = data[os.write(self._file, data) :]
        if self.path is not None:
            os.fsync(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._file)


def _whole_lines(file: int) -> tuple[int, int]:
    """How many lines of a file have an end, and where the last of them ends."""
    count, end, at = 0, 0, 0
    while block := os.pread(file, _BLOCK, at):
        if found := block.count(b"\n"):
            count, end = count + found, at + block.rindex(b"\n") + 1
        at += len(block)
    return count, end
