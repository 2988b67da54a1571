"""The files of metrics: a run always writes metrics.jsonl, and TensorBoard or Weights & Biases on request; JSON files.

JSON is strict here: NaN and the infinities, which JSON does not have, become null.
"""

import importlib.util
import io
import json
import math
import os
import sys
import tempfile
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from tensorboardX import SummaryWriter

from ttrl_jax.errors import InputError
from ttrl_jax.run import places


class Lines:
    """A JSON Lines file of a run that grows by the step: each row has a "step"."""

    def __init__(self, path: Path, *, start_step: int, most: int | None = None):
        """Open the file, made if need be, and drop the rows that a killed run left too many.

        start_step: rows of this step and later are dropped: they will be written again. most: rows that the file gets
        at most. Raises InputError if it is not such a file.
        """
        self._path, self._bucket = path, places.in_bucket(path)
        _drop_from(path, start_step)
        self._left = None
        if most is not None:
            self._left = most - (path.read_bytes().count(b"\n") if path.exists() else 0)
        if self._bucket:  # where nothing can be appended: the rows wait here for `flush`
            self._file = io.StringIO(path.read_text(encoding="utf-8") if path.is_file() else "")
            self._file.seek(0, io.SEEK_END)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8")

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows, as many as the file may still get. It ends with the last of them when the call returns, an
        object of a bucket after `flush`."""
        if self._left is not None:
            rows = list(rows)[: max(0, self._left)]
            self._left -= len(rows)
        # A lone surrogate in a response has no UTF-8; see write_text.
        text = "".join(_to_json(row) + "\n" for row in rows)
        self._file.write(text.encode("utf-8", "backslashreplace").decode("utf-8"))
        self._file.flush()

    def flush(self) -> None:
        """Write what waits."""
        if self._bucket:
            write_text(self._path, self._file.getvalue())

    def close(self) -> None:
        """Write what waits, and close."""
        with self._file:
            self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class MetricsLog:
    """The metrics of one run, one row per `write`. Only process 0 makes one."""

    def __init__(
        self,
        folder: Path,
        *,
        start_step: int,
        tensorboard: bool,
        wandb_project: str | None,
        config: Mapping[str, Any] | None = None,
    ):
        """Open the logs in `folder`, made if need be, and drop the rows that a killed run left too many.

        Args:
          folder: the run folder. Gets metrics.jsonl, tensorboard/, wandb/ and wandb_id.
          start_step: number of finished training steps that this run goes on from; 0 for a new run. Rows of
            this step and later are dropped: they will be written again.
          tensorboard: also write events through tensorboardX.
          wandb_project: also log to this Weights & Biases project; None does not.
          config: key -> value of every setting, which both show.

        Raises:
          InputError: a package that was asked for is not installed, or metrics.jsonl is not one.
        """
        # The optional package first: if it is missing, nothing has been written or dropped yet.
        self._wandb = _open_wandb(folder, wandb_project, config) if wandb_project is not None else None
        self._lines = Lines(folder / "metrics.jsonl", start_step=start_step)
        self._events = _Events(folder / "tensorboard", start_step=start_step) if tensorboard else None
        if self._events is not None and config:
            self._events.text("config", "\n".join(f"{key} = {value!r}" for key, value in config.items()), start_step)

    def text(self, name: str, text: str, step: int) -> None:
        """Show a text in TensorBoard, as it stands."""
        if self._events is not None:
            self._events.text(name, text, step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one row {"step": step, **metrics}; written as `Lines.write` does.

        Args:
          step: index of the training step that the numbers are of, counted from 0.
          metrics: name -> number; any 0-d array that float() takes will do.
        """
        numbers = {name: value if isinstance(value, int) else float(value) for name, value in metrics.items()}
        self._lines.write([{"step": step} | numbers])
        if self._events is not None:
            self._events.write(step, numbers)
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)

    def flush(self) -> None:
        """Write what waits."""
        self._lines.flush()
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        """Write what waits, and close all three logs."""
        self._lines.close()
        if self._events is not None:
            self._events.close()
        if self._wandb is not None:
            self._wandb.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Events:
    """TensorBoard's file. For a bucket it is made here and sent whole, as nothing can be appended there."""

    def __init__(self, folder: Path, *, start_step: int):
        self._folder, self._scratch = folder, tempfile.TemporaryDirectory() if places.in_bucket(folder) else None
        where = str(folder) if self._scratch is None else self._scratch.name
        # purge_step makes TensorBoard hide the events of a killed run that this one will write again.
        self._writer = SummaryWriter(where, purge_step=start_step)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def text(self, name: str, text: str, step: int) -> None:
        # TensorBoard reads Markdown, in which indented lines stand as they are.
        self._writer.add_text(name, "".join(f"    {line}\n" for line in text.splitlines()), step)

    def flush(self) -> None:
        if self._scratch is not None:
            for file in Path(self._scratch.name).iterdir():
                (self._folder / file.name).write_bytes(file.read_bytes())

    def close(self) -> None:
        self._writer.close()
        try:
            self.flush()
        finally:
            if self._scratch is not None:
                self._scratch.cleanup()


def require_wandb(project: str) -> None:
    """Raise InputError if the package is not installed that logs to this project."""
    if importlib.util.find_spec("wandb") is None:
        raise InputError(
            f'the Weights & Biases project "{project}" was asked for, but wandb is not installed: '
            'pip install -e ".[wandb]"'
        )


def _open_wandb(folder: Path, project: str, config: Mapping[str, Any] | None) -> Any:
    require_wandb(project)
    import wandb

    # The id makes a resumed run go on in the same curve. Rows that a killed run already sent are refused
    # there with a warning; they are the same numbers.
    id_file = folder / "wandb_id"
    if not id_file.exists():
        write_text(id_file, uuid.uuid4().hex)
    run_id = id_file.read_text(encoding="utf-8")
    home = None if places.in_bucket(folder) else str(folder)  # None: ./wandb
    shown = {} if config is None else dict(config)
    return wandb.init(
        project=project, name=folder.name, id=run_id, resume="allow", dir=home, config=shown, allow_val_change=True
    )


def _drop_from(path: Path, start_step: int) -> None:
    """Atomically drop the rows of `start_step` and later, and a last line that a kill left unfinished."""
    if not path.exists():
        return
    lines = path.read_bytes().split(b"\n")
    complete, unfinished = lines[:-1], lines[-1]  # the last is b"" unless a write was cut short
    kept = []
    for number, line in enumerate(complete, start=1):
        try:
            step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f'{path} line {number} is not a JSON object with a "step": repair or remove the file to go on'
            ) from error
        if step < start_step:
            kept.append(line)
    if unfinished or len(kept) < len(complete):
        write_text(path, b"".join(line + b"\n" for line in kept).decode())


def write_text(path: str | Path, text: str) -> None:
    """Put `text` into `path` by renaming a finished file over it: at any moment it is the old or the new.

    Folders on the way are made.
    """
    path = Path(path) if isinstance(path, str) else path
    # A lone surrogate in a response has no UTF-8; backslashreplace makes it an escape, as is JSON's way to spell it.
    encoded = text.encode("utf-8", "backslashreplace")
    if places.in_bucket(path):
        path.write_bytes(encoded)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".tmp")
    with unfinished.open("wb") as file:
        file.write(encoded)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The JSON objects of a JSON Lines file, none if it is missing, and how many of its lines are none."""
    if not path.is_file():
        return [], 0
    rows, unreadable = [], 0
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line, parse_constant=lambda _: None)  # NaN is no JSON
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            unreadable += 1
    return rows, unreadable


def finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that are finite numbers; a number that was not finite has been written as null."""
    return {name: x for name, x in row.items() if type(x) in (int, float) and abs(x) <= sys.float_info.max}


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as an indented JSON file, whole or not at all. Folders on the way are made."""
    write_text(path, _to_json(value, indent=2) + "\n")


def write_jsonl(path: str | Path, rows: Iterable[Any]) -> None:
    """Write one JSON line per row, whole or not at all. Folders on the way are made."""
    write_text(path, "".join(_to_json(row) + "\n" for row in rows))


def _to_json(value: Any, *, indent: int | None = None) -> str:
    return json.dumps(_finite(value), allow_nan=False, ensure_ascii=False, indent=indent)


def _finite(value: Any) -> Any:
    """`value` with None in place of every float that is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value
