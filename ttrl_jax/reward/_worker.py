"""The process that compares formulas: `python -m ttrl_jax.reward._worker MEMORY_MIB CPU_SECONDS LIFE_CPU_SECONDS`.

It reads one JSON list of two formulas per line and writes `true`, `false` or `null` (cannot be decided) per line, and
the processor time that it took, in seconds. It never sees JAX.

A child compares, forked from a process that has everything loaded: a comparison that takes more memory than MEMORY_MIB
or more processor time than CPU_SECONDS ends the child, of which `over` is written, and the next one is there at once.
What could not come from a comparison (`_forbid`), or from one alone, ends both. The parent notices.
"""

import gc
import json
import os
import re
import resource
import signal
import sys
import time
from typing import BinaryIO

import mpmath
import sympy
import sympy.assumptions.wrapper  # noqa: F401  these four are imported late, by the functions that need them
import sympy.physics.matrices  # noqa: F401
import sympy.physics.units  # noqa: F401
import sympy.sets.setexpr  # noqa: F401

from ttrl_jax.reward._compare import compare

FORBIDDEN, OUT_OF_MEMORY = 70, 71  # exit statuses
MAX_LINE = 8_192  # bytes of a request

_LIBRARIES = tuple(os.path.dirname(module.__file__) + os.sep for module in (sympy, mpmath))
_HARMLESS = frozenset(
    {"array.__new__", "builtins.id", "marshal.loads", "object.__getattr__", "os.listdir", "sys._getframe"}
)
# Build the tables of the parser and make sympy import what it imports late, before the limits hold.
_WARM_UP = ((r"\frac{x}{2} + \sqrt{3}", r"\sqrt{3} + 0.5x"), ("x^2 - 1", "(x - 1)(x + 1)"), ("(1,2)", "1<x<2"))
# The whole source of such a function: no names but its own, no attribute, no call.
_MONOMIAL = re.compile(
    rb"def monomial_[a-z]+\((?:A, B|A, k|A, B, k)\):\n(?:return|if|else|None|[ABkabr][0-9]*|[0-9]+|[ \n,()=:+*<>-])+"
)


def _forbid(event: str, arguments: tuple) -> None:
    """An audit hook: end the process at the first event that comparing formulas does not cause.

    What it does cause: sympy imports parts of itself late, and compiles functions that multiply monomials.
    """
    if event == "compile":
        source = arguments[0]
        harmless = source is None or isinstance(source, bytes) and _MONOMIAL.fullmatch(source) is not None
    elif event == "exec":
        harmless = arguments[0].co_filename.startswith(("<string>", *_LIBRARIES))
    elif event == "open":
        path, mode, _ = arguments
        harmless = isinstance(path, str) and path.startswith(_LIBRARIES) and mode in ("r", "rb")
    elif event == "import":
        harmless = arguments[0].partition(".")[0] in ("sympy", "mpmath")
    else:
        harmless = event in _HARMLESS
    if not harmless:
        os._exit(FORBIDDEN)


def main() -> None:
    memory, cpu, life = int(sys.argv[1]) << 20, float(sys.argv[2]), int(sys.argv[3])
    replies, requests = os.fdopen(os.dup(1), "wb", buffering=0), os.fdopen(os.dup(0), "rb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent; it closes us
    for pair in _WARM_UP:
        compare(*pair)
    gc.freeze()  # what is loaded stays shared
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    replies.write(b"ready\n")
    while True:
        parent = os.getpid()
        if (child := os.fork()) == 0:
            _compare_all(requests, replies, parent, cpu=cpu, life=life)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == -signal.SIGPROF:
            replies.write(b"over %f\n" % cpu)
        elif status < 0:
            os.kill(parent, -status)
        elif status != OUT_OF_MEMORY:
            os._exit(status)


def _compare_all(requests: BinaryIO, replies: BinaryIO, parent: int, *, cpu: float, life: int) -> None:
    """Compare what is asked for until nothing more comes, or `parent` is gone, with no right to do anything else."""
    resource.setrlimit(resource.RLIMIT_CPU, (life, life))
    for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE, resource.RLIMIT_NPROC):
        resource.setrlimit(limit, (0, 0))
    sys.addaudithook(_forbid)
    while (line := requests.readline(MAX_LINE)) and os.getppid() == parent:
        first, second = json.loads(line)
        start = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, cpu)  # its signal is not handled: the kernel ends even a stuck C loop
        try:
            answer = json.dumps(compare(first, second)).encode()
        except MemoryError:
            answer = b"over"
        signal.setitimer(signal.ITIMER_PROF, 0)
        replies.write(b"%s %f\n" % (answer, time.process_time() - start))
        if answer == b"over":
            os._exit(OUT_OF_MEMORY)  # what is left of the memory would not last


if __name__ == "__main__":
    main()
