"""One writer: a run folder is locked by the process that writes it."""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from ttrl_jax.errors import InputError

LOCK = "writer.lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class WriterLock:
    """The lock of a run folder, held from entering to leaving. The system lets go of it when its process dies; what
    that process was stays in the file."""

    def __init__(self, folder: Path, *, flag: str, say: Callable[[str], None]):
        """folder: is made if need be. flag: what sets it. say: gets a line about a process that has died, and about a
        file system that has no locks."""
        self._path, self._flag, self._say, self._file = folder / LOCK, flag, say, -1

    def __enter__(self) -> Self:
        """Raises InputError, with host and process, if another process holds the lock."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            writer = self._writer() or "another process"
            os.close(self._file)
            raise InputError(
                f"{self._path.parent} is being written by {writer}; wait for it, stop it, or choose another "
                f"{self._flag}"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            self._say(
                f"lock      {self._path.parent} is on a file system without locks ({error.strerror}): nothing keeps a "
                "second process from writing there"
            )
        if writer := self._writer():
            self._say(f"lock      {writer} has ended without letting go of the folder, and is replaced")
        self._write({"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")})
        return self

    def __exit__(self, *exception: object) -> None:
        self._write({})
        os.close(self._file)

    def _writer(self) -> str:
        """Who wrote the file, in words; empty where nobody did, or has let go."""
        text = os.pread(self._file, 4096, 0).decode(errors="replace")
        try:
            found = json.loads(text or "{}")
            return f"process {found['process']} on {found['host']}, since {found['since']}" if found else ""
        except (ValueError, KeyError, TypeError):  # its process died while it wrote
            return "a process"

    def _write(self, value: dict[str, object]) -> None:
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(value).encode(), 0)
