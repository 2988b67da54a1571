"""Signals that ask a command to leave, and work that they need not wait for."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Self, TypeVar

import jax

from ttrl_jax.run import distributed

PyTree = Any
T = TypeVar("T")


class Interrupted(Exception):
    """A signal (its number) asked one of the processes to leave, and this is a safe point."""


class Interrupt:
    """SIGINT and SIGTERM as a flag: `signum` is None until one came, then its number.

    The first signal is noted and announced on stderr. Within `at_once` it then raises Interrupted; elsewhere the
    program goes on until it looks at `signum`. A second one does what it does by default and ends the process at once.
    Leaving the block puts the former handlers back. For the main thread only, where Python delivers signals: entering
    elsewhere raises ValueError.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._former: dict[int, Any] = {}
        self._in_use: PyTree | None = None  # the arrays without which nothing can be saved; None: not at once

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def at_once(self, arrays: PyTree = ()) -> Iterator[None]:
        """Let a signal raise Interrupted wherever the program is, as long as none of `arrays` has been given away to an
        update: without them the step's start cannot be saved, and the update is finished first.

        What has come before raises too. With several processes, all have to leave at the same point: nothing is raised
        here.
        """
        former, self._in_use = self._in_use, None if distributed.several() else arrays
        try:
            if self.signum is not None:
                self._leave(self.signum)
            yield
        finally:
            self._in_use = former

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signum = number
        for each in self._former:
            signal.signal(each, signal.SIG_DFL)
        # os.write, as print may be interrupted half-way by this very handler and must not be re-entered.
        name = signal.Signals(number).name
        os.write(2, f"\n{name}: will save and leave at the next safe point; once more stops at once\n".encode())
        self._leave(number)

    def _leave(self, number: int) -> None:
        if self._in_use is not None and not any(leaf.is_deleted() for leaf in jax.tree.leaves(self._in_use)):
            raise Interrupted(number)


_left_behind = threading.Event()


def in_background(work: Callable[[], T]) -> T:
    """What work() returns, done by another thread: a signal is heard meanwhile, also while a long program of C++ runs.

    What leaves by a signal leaves the thread behind; `left_behind` knows.
    """
    kept: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            kept.append(work())
        except BaseException as error:  # raised again below, in the thread that waits
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        thread.join()
    except BaseException:
        _left_behind.set()
        raise
    if failed:
        raise failed[0]
    return kept[0]


def left_behind() -> bool:
    """Whether work is going on that nobody waits for, and that a normal end of the process would trip over."""
    return _left_behind.is_set()
