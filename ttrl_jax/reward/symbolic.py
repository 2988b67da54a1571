"""Ask a computer algebra system whether two answers are equal, within limits of time and memory.

What a model wrote is hostile until shown otherwise. `admit` lets through what is certainly a small formula; the rest
is not decided. What passes is compared in other processes (`_worker`), which have no JAX in them, little memory,
little time and no right to do anything but compare; one that does not answer in time is killed and replaced.

Votes must not depend on how busy the machine was, so what a pair costs itself decides alone: processor time and memory,
which a worker counts for itself. That is remembered. A worker that the clock gave up on, or that was killed from
outside, is not the pair's fault: the pair is tried again, each time with more patience. If that fails too it is lost:
it counts as not decided this time, which is said on stderr, and is not remembered.
"""

import atexit
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ttrl_jax.reward.admit import admit, is_prose

Pair = tuple[str, str]


@dataclass(frozen=True)
class Limits:
    """What comparing may take. Processor time decides, as it is the same on a busy machine; the clock is a backstop.

    64 pairs (`equivalence.MAX_PAIRS`) that all use up their processor time, each with a new worker after it, take one
    worker about 200 seconds: no batch of a machine that works comes near its end.
    """

    workers: int = min(4, os.cpu_count() or 1)
    cpu_seconds: float = 1.0  # processor time of one comparison
    pair_seconds: float = 4.0  # wall-clock time of the first try of one comparison; each further one has 3 times more
    tries: int = 3  # of a comparison whose worker stalled or was killed from outside
    batch_seconds: float = 300.0  # wall-clock time of all comparisons of a call, the start of workers included
    start_seconds: float = 60.0  # wall-clock time until a worker is ready
    memory_mib: int = 512  # address space of a worker; it starts with about 70
    comparisons: int = 500  # then a new process takes over, as sympy's caches only grow
    remembered: int = 100_000  # pairs


class Comparer:
    """Worker processes and what they have found. Safe to use from several threads, one at a time."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._workers: list[_Worker] = []
        self._memo: dict[Pair, bool | None] = {}  # oldest first
        self.lost = 0  # pairs so far

    def equal(self, pairs: Sequence[Pair]) -> list[bool | None]:
        """See `equal` of this module."""
        quick = [_without_algebra(*pair) for pair in pairs]
        with self._lock:
            asked = dict.fromkeys(pair for pair in quick if isinstance(pair, tuple))
            found = {pair: self._memo[pair] for pair in asked if pair in self._memo}
            new = [pair for pair in asked if pair not in found]
            if new:
                batch = _Batch(new, self._workers, self._limits)
                batch.run()
                found |= batch.found
                self._remember({pair: batch.found[pair] for pair in new if pair not in batch.lost})
                self._say(len(batch.lost))
        return [found[pair] if isinstance(pair, tuple) else pair for pair in quick]

    def close(self) -> None:
        """End the workers; the next call starts new ones."""
        with self._lock:
            while self._workers:
                self._workers.pop().end()

    def forget_workers(self) -> None:
        """In a forked child: the workers are the parent's, and the lock may be held by a thread that is gone."""
        self._lock = threading.Lock()
        while self._workers:
            self._workers.pop().let_go()

    def processes(self) -> list[int]:
        """Return the process ids of the living workers."""
        return [worker.process.pid for worker in self._workers]

    def _say(self, lost: int) -> None:
        self.lost += lost
        if lost:
            print(
                f"answers   {lost} comparisons were lost, as this machine stalled or their processes were killed; they "
                f"count as different this time ({self.lost} so far). A resumed run may differ from here on.",
                file=sys.stderr,
                flush=True,
            )

    def _remember(self, found: dict[Pair, bool | None]) -> None:
        self._memo |= found
        for pair in list(self._memo)[: max(0, len(self._memo) - self._limits.remembered)]:
            del self._memo[pair]


def equal(pairs: Sequence[Pair]) -> list[bool | None]:
    """Return for each pair of answer texts, LaTeX or plain, whether they are equal; None: not decided.

    Not decided is what is too long, nested too deep or no formula that `admit` knows, what the parser does not
    understand, what takes more than `Limits` allows, and what is lost. Order never matters, within a pair or among
    pairs. Numbers are exact: 0.333 is not 1/3. Words are equal only as text, which the caller has compared already:
    False.
    """
    return _COMPARER.equal(pairs)


def _without_algebra(first: str, second: str) -> Pair | bool | None:
    """Decide without a worker, or return the two formulas, sorted so that both orders are one pair."""
    a, b = admit(first), admit(second)
    if (a is None and is_prose(first)) or (b is None and is_prose(second)):
        return False  # a word equals nothing but itself
    if a is None or b is None:
        return None
    if a == b:
        return True
    if is_prose(first) and is_prose(second) and sorted(a) != sorted(b):
        return False  # B and C, but not ab and ba, which may be products
    if (is_prose(first) and _NUMBER.fullmatch(b)) or (is_prose(second) and _NUMBER.fullmatch(a)):
        return False
    return min(a, b), max(a, b)


class _Worker:
    """One process and what it is doing: nothing yet, waiting, or a pair with a deadline."""

    def __init__(self, limits: Limits) -> None:
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        # PYTHONHASHSEED: sympy orders terms by hashes. SYMPY_GROUND_TYPES, MPMATH_NOGMPY: the same arithmetic wherever
        # other libraries are installed. LD_LIBRARY_PATH: some builds of Python need it.
        environment = {"PYTHONPATH": path, "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"}
        environment |= {"SYMPY_GROUND_TYPES": "python", "MPMATH_NOGMPY": "1"}
        if "LD_LIBRARY_PATH" in os.environ:
            environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
        life = int(60 + limits.comparisons * limits.cpu_seconds)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "ttrl_jax.reward._worker"]
            + [str(value) for value in (limits.memory_mib, limits.cpu_seconds, life)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            cwd="/",
            env=environment,
            start_new_session=True,  # Ctrl-C in the terminal is not sent to it
        )
        self.ready = False
        self.pair: Pair | None = None
        self.deadline = time.monotonic() + limits.start_seconds
        self.left = limits.comparisons
        self.received = b""

    def ask(self, pair: Pair, seconds: float) -> None:
        """Send a pair. Raises OSError if the process is gone."""
        self.pair, self.received = pair, b""
        self.deadline = time.monotonic() + seconds
        self.left -= 1
        self.process.stdin.write(json.dumps(pair).encode() + b"\n")

    def end(self) -> int:
        """Kill the process, if it has not ended by itself, and return how it ended, as `Popen.returncode` has it."""
        self.process.kill()
        status = self.process.wait()
        self.let_go()
        return status

    def let_go(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.returncode = self.process.returncode or 0  # or it would be waited for, which only its parent can


class _Batch:
    """One call: pairs on their way through the workers."""

    def __init__(self, pairs: Sequence[Pair], workers: list[_Worker], limits: Limits) -> None:
        self.found: dict[Pair, bool | None] = {}
        self.lost: set[Pair] = set()  # not decided, through no fault of theirs
        self._todo = deque(pairs)
        self._workers = workers
        self._limits = limits
        self._failures: dict[Pair | None, int] = {}

    def run(self) -> None:
        deadline = time.monotonic() + self._limits.batch_seconds
        while self._todo or any(worker.pair for worker in self._workers):
            self._assign()
            now = time.monotonic()
            if now >= deadline:
                break
            waiting = [worker for worker in self._workers if worker.pair or not worker.ready]
            wake = min([deadline, *(worker.deadline for worker in waiting)])
            with selectors.DefaultSelector() as selector:
                for worker in waiting:
                    selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
                events = selector.select(max(0.0, wake - now))
            stopped = time.monotonic() - max(now, wake)
            if stopped > _OWN_STOP:  # Ctrl-Z, or all of the machine: replies may wait to be read
                deadline += stopped
                for worker in self._workers:
                    worker.deadline += stopped
            for key, _ in events:
                self._read(key.data)
            for worker in [w for w in self._workers if (w.pair or not w.ready) and time.monotonic() >= w.deadline]:
                self._drop(worker, late=True)
        self._give_up()

    def _assign(self) -> None:
        for worker in [w for w in self._workers if w.ready and not w.pair]:
            if worker.left <= 0:
                self._remove(worker)
            elif self._todo:
                try:
                    pair = self._todo.popleft()
                    worker.ask(pair, self._limits.pair_seconds * 3 ** self._failures.get(pair, 0))
                except OSError:
                    self._drop(worker, late=False)
        free = sum(not worker.pair for worker in self._workers)
        while len(self._workers) < self._limits.workers and free < len(self._todo):
            self._workers.append(_Worker(self._limits))
            free += 1

    def _read(self, worker: _Worker) -> None:
        chunk = os.read(worker.process.stdout.fileno(), _LONGEST_REPLY + 1)
        worker.received += chunk
        if not chunk or len(worker.received) > _LONGEST_REPLY:
            self._drop(worker, late=False)
        elif worker.received.endswith(b"\n"):
            reply = worker.received.rstrip()
            if not worker.ready and reply == b"ready":
                worker.ready = True
                worker.received = b""
            elif worker.pair and reply in _REPLIES:
                self.found[worker.pair] = _REPLIES[reply]
                worker.pair = None
            else:
                self._drop(worker, late=False)

    def _drop(self, worker: _Worker, *, late: bool) -> None:
        """Replace a worker that is late or gone. Its pair is not decided, or tried again if it was not to blame."""
        status, pair = self._remove(worker), worker.pair
        failures = self._failures[pair] = self._failures.get(pair, 0) + 1
        crashed = not late and status not in _FROM_OUTSIDE
        if pair is None:
            if failures >= _MAX_FAILED_STARTS:
                raise RuntimeError(
                    f"Expected the worker that compares answers to start, but it ended {failures} times in a row, "
                    f"the last time with status {status}; `python -m ttrl_jax.reward._worker 512 2 60` should say why."
                )
        elif status in _TO_BLAME or (crashed and failures > 1):
            self.found[pair] = None
        elif failures >= self._limits.tries:
            self.lost.add(pair)
        else:
            self._todo.appendleft(pair)

    def _remove(self, worker: _Worker) -> int:
        self._workers.remove(worker)
        return worker.end()

    def _give_up(self) -> None:
        for worker in [worker for worker in self._workers if worker.pair]:
            self.lost.add(worker.pair)
            self._remove(worker)
        self.lost |= set(self._todo)
        self.found |= dict.fromkeys(self.lost)


_NUMBER = re.compile(r"[+-]?[0-9.]+")
_LONGEST_REPLY = 16  # bytes
# How a worker ends by what it compares: no more processor time, or its exit statuses FORBIDDEN and OUT_OF_MEMORY.
_TO_BLAME = (-signal.SIGPROF, 70, 71)
_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM)  # as by a kernel that is out of memory
_OWN_STOP = 1.0  # seconds that a wait lasts too long, by which this process itself was stopped
_REPLIES = {b"true": True, b"false": False, b"null": None}
_MAX_FAILED_STARTS = 3
_COMPARER = Comparer(Limits())
atexit.register(_COMPARER.close)
os.register_at_fork(after_in_child=_COMPARER.forget_workers)
