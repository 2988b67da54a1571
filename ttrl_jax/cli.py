"""What the commands share: turning errors into one sentence and an exit code."""

import errno
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

from absl import flags

from ttrl_jax import ctrl_c
from ttrl_jax.commands import NO_FLAGS, USAGE_ERROR, Command, parse
from ttrl_jax.errors import InputError
from ttrl_jax.run import distributed
from ttrl_jax.run.interrupt import Interrupted, left_behind

_FULL = ("the disk is full", "free some space and run the same command again")
_FORBIDDEN = ("that is not permitted here", "choose another place, or see to its permissions")
_ADVICE = {
    errno.ENOSPC: _FULL, errno.EDQUOT: _FULL,
    errno.EROFS: _FORBIDDEN, errno.EACCES: _FORBIDDEN, errno.EPERM: _FORBIDDEN,
}  # fmt: skip


def join_processes() -> None:
    """Join the other processes as the flags say, or the environment. Raises InputError, also without any device."""
    given = flags.FLAGS
    distributed.start(coordinator=given.coordinator, num_processes=given.num_processes, process_id=given.process_id)
    distributed.devices()


def run(
    main: Callable[..., int], command: Command = NO_FLAGS, *, doc: str = "", arguments: list[str] | None = None
) -> int:
    """Call `main` with what is no flag in sys.argv, and return the exit code.

    arguments: that, if the flags have been parsed (`commands.begin`); else they are parsed here.

    The code is main's own; 2, with one line on stderr, for an InputError, a full disk or a place that may not be read
    or written; 1 for numbers that are no longer finite; 130 for Ctrl-C where main does not see to it; 75 (from
    run/distributed.py) where another process has gone. `--help` prints `doc` and the flags of the command.
    """
    for stream in (sys.stdout, sys.stderr):  # in ASCII, say, a question may not be printable: \xfc for ü then
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    return distributed.leave(_run(main, command, doc, arguments))


def leave(code: int) -> NoReturn:
    """End the program. At once after an error that is a sentence, which would be buried by what a full disk means to
    the threads and the exit handlers of libraries; after a signal, when all is saved and Python would take seconds to
    put its memory in order; and where a compile has been left behind."""
    if code == USAGE_ERROR or code >= 128 or left_behind():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _run(main: Callable[..., int], command: Command, doc: str, arguments: list[str] | None) -> int:
    try:
        ctrl_c.raises()
        return main(*(parse(command, doc=doc) if arguments is None else arguments))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except Interrupted as signalled:
        return 128 + signalled.args[0]
    except OSError as error:
        advice = _ADVICE.get(error.errno)
        if advice is None:
            return _failed(error)
        # While this waits for other processes, what it means to threads of libraries would bury the sentence.
        threading.excepthook = sys.unraisablehook = lambda failed: None
        print(f"error: {advice[0]} ({error}); {advice[1]}", file=sys.stderr)
        return USAGE_ERROR
    except Exception as error:
        return _failed(error)


def _failed(error: Exception) -> int:
    """What no user made is raised again; in one of several processes it is printed, as the others wait for this one."""
    if not distributed.several():
        raise error
    traceback.print_exception(error)
    distributed.await_verdict()
    return 1
