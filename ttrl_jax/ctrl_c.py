"""Ctrl-C while a command is starting: its imports take seconds, and in them it would be a traceback of their inside.

It imports nothing that takes time, as it is there before everything else (`__init__.py`).
"""

import os
import signal
from types import FrameType


def ends_at_once() -> None:
    """End the process at SIGINT with one line and exit code 130, until `raises`. For a program that has done nothing
    yet which it would have to undo. Where SIGINT is ignored, as in a job in the background, it stays so."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def raises() -> None:
    """Let SIGINT raise KeyboardInterrupt again, if `ends_at_once` has changed that."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(128 + number)
