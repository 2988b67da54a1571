"""Ask a computer algebra system whether two answers are equal, within limits of time and memory.

What a model wrote is hostile until shown otherwise. `admit` lets through what is certainly a small formula; the rest
is not decided. What passes is compared in other processes (`_worker`), which have no JAX in them, little memory,
little time and no right to do anything but compare; one that does not answer in time is killed and replaced.

Votes must not depend on how busy the machine was, so what a pair costs itself decides alone: processor time and memory,
which a worker counts for itself. What was found is remembered together with its cost. The pairs of one question are
compared in their order as long as those before them have cost less than it may take; the others are not decided. The
costs decide that whether or not a pair is remembered, so a run that was resumed finds the same.

A worker that the clock gave up on, or that was killed from outside, is not the pair's fault: the pair is tried again,
each time with more patience. If that fails too it is lost: it counts as not decided this time, which is said on stderr.
Another call tries it again, but not more often than a few times.
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
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from ttrl_jax.reward.admit import admit, is_prose

Pair = tuple[str, str]
Found = tuple[bool | None, float]  # whether a pair is equal, and the processor time that it took


@dataclass(frozen=True)
class Limits:
    """Limits of a comparison. They are in processor time, which is the same on a busy machine; the clock is a backstop.

    A question whose pairs are all hard takes `question_seconds` and at most `cpu_seconds` of each worker besides. So no
    batch comes near its end on a machine that gives its workers a tenth of a processor.
    """

    workers: int = min(4, os.cpu_count() or 1)
    cpu_seconds: float = 1.0  # processor time of one comparison
    question_seconds: float = 3.0  # processor time after which no further pair of a question is compared
    pair_seconds: float = 4.0  # wall-clock time of the first try of one comparison; each further one has 3 times more
    tries: int = 3  # of a comparison whose worker stalled or was killed from outside; and of calls that lose it
    batch_seconds: float = 60.0  # wall-clock time of all comparisons of a call, but for the start of the first worker
    start_seconds: float = 60.0  # wall-clock time until a worker is ready
    memory_mib: int = 512  # address space of a worker; it starts with about 70
    comparisons: int = 500  # then a new process takes over, as sympy's caches only grow
    remembered: int = 100_000  # pairs


@dataclass(frozen=True)
class Undecided:
    """A pair of answers that may be the same, but counts as different."""

    first: str
    second: str
    why: str  # undecided: beyond what can be read, or than may be spent on it | lost: the machine stalled


@dataclass
class Question:
    """How much processor time the comparisons of one question have taken, and which pairs were not decided."""

    seconds: float  # processor time that is left
    undecided: list[Undecided] = field(default_factory=list)


@contextmanager
def question(seconds: float | None = None) -> Iterator[Question]:
    """All comparisons in this block belong to one question. Together they may take this much processor time.

    None: `Limits.question_seconds`. Without such a block each call of `equal` is a question of its own. Pairs that
    were not decided in a block within another one are of both.
    """
    opened = Question(_COMPARER._limits.question_seconds if seconds is None else seconds)
    outer, token = _QUESTION.get(), _QUESTION.set(opened)
    try:
        yield opened
    finally:
        _QUESTION.reset(token)
        if outer is not None:
            outer.undecided += opened.undecided


def note(first: str, second: str) -> None:
    """Count a pair of answers that could not be compared among those that were not decided."""
    if (asked_in := _QUESTION.get()) is not None:
        asked_in.undecided.append(Undecided(first, second, "undecided"))


class Comparer:
    """Worker processes and what they have found. Safe to use from several threads, one at a time."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._workers: list[_Worker] = []
        self._memo: dict[Pair, Found] = {}  # oldest first
        self._losses: Counter[Pair] = Counter()
        self.lost = 0  # pairs so far

    def equal(self, pairs: Sequence[Pair]) -> list[bool | None]:
        """See `equal` of this module."""
        asked_in = _QUESTION.get() or Question(self._limits.question_seconds)
        quick = [_without_algebra(*pair) for pair in pairs]
        with self._lock:
            asked = list(dict.fromkeys(pair for pair in quick if isinstance(pair, tuple)))
            found, lost = self._find(asked, asked_in)
        answers = [found[pair] if isinstance(pair, tuple) else pair for pair in quick]
        asked_in.undecided += [
            Undecided(*pair, "lost" if formulas in lost else "undecided")
            for pair, formulas, answer in zip(pairs, quick, answers, strict=True)
            if answer is None
        ]
        return answers

    def _find(self, asked: Sequence[Pair], question: Question) -> tuple[dict[Pair, bool | None], set[Pair]]:
        """What is found of the pairs in their order, as long as the question's time lasts, and which were lost."""
        known = {pair: self._memo[pair] for pair in asked if pair in self._memo}
        batch = _Batch(asked, known, question.seconds, self._workers, self._limits)
        batch.run()
        self._remember(batch.found)
        for pair in batch.lost:
            self._losses[pair] += 1
            if self._losses[pair] >= self._limits.tries:
                self._remember({pair: (None, 0.0)})
        self._say(len(batch.lost))
        found: dict[Pair, bool | None] = {}
        for pair in asked:
            answer, cost = known.get(pair) or batch.found.get(pair, (None, 0.0))
            found[pair] = answer if question.seconds > 0 else None
            question.seconds -= cost if question.seconds > 0 else 0.0
        return found, batch.lost

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

    def _remember(self, found: dict[Pair, Found]) -> None:
        self._memo |= found
        for pair in list(self._memo)[: max(0, len(self._memo) - self._limits.remembered)]:
            del self._memo[pair]


def equal(pairs: Sequence[Pair]) -> list[bool | None]:
    """Return for each pair of answer texts, LaTeX or plain, whether they are equal; None: not decided.

    Not decided is what is too long, nested too deep or no formula that `admit` knows, what the parser does not
    understand, what takes more than `Limits` allows, what comes after the question's time is spent, and what is lost;
    `question` collects these pairs. Order never matters within a pair, and among pairs only for which of them come
    after that. Numbers are exact: 0.333 is not 1/3. Words are equal only as text, which the caller
    has compared already: False.
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
        """Kill the process and its child, if they have not ended by themselves, and return how the process ended, as
        `Popen.returncode` has it."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        status = self.process.wait()
        self.let_go()
        return status

    def let_go(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.returncode = self.process.returncode or 0  # or it would be waited for, which only its parent can


class _Batch:
    """One call: pairs on their way through the workers, in their order, as long as the time of their question lasts."""

    def __init__(
        self, pairs: Sequence[Pair], known: Mapping[Pair, Found], seconds: float, workers: list[_Worker], limits: Limits
    ) -> None:
        self.found: dict[Pair, Found] = {}  # what was not known
        self.lost: set[Pair] = set()  # not decided, through no fault of theirs
        self._todo = deque(pairs)
        self._known = known
        self._left = seconds  # processor time for pairs that have not been begun
        self._workers = workers
        self._limits = limits
        self._failures: dict[Pair | None, int] = {}

    def run(self) -> None:
        deadline = time.monotonic() + self._limits.batch_seconds
        while self._next() or any(worker.pair for worker in self._workers):
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
            if not any(worker.ready for worker in self._workers):
                deadline += time.monotonic() - now  # how long a worker takes to start is not the question's fault
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

    def _next(self) -> bool:
        """Whether a pair is to be compared now: what is known already only takes its time off."""
        while self._todo and self._left > 0 and (found := self._known.get(self._todo[0])) is not None:
            self._todo.popleft()
            self._left -= found[1]
        if self._left <= 0:
            # Those before have taken all of the time. Which pairs are tried again, the machine has decided: they stay.
            self._todo = deque(pair for pair in self._todo if pair in self._failures)
        return bool(self._todo)

    def _assign(self) -> None:
        for worker in [w for w in self._workers if w.ready and not w.pair]:
            if worker.left <= 0:
                self._remove(worker)
            elif self._next():
                try:
                    pair = self._todo.popleft()
                    worker.ask(pair, self._limits.pair_seconds * 3 ** self._failures.get(pair, 0))
                except OSError:
                    self._drop(worker, late=False)
        free = sum(not worker.pair for worker in self._workers)
        while self._next() and len(self._workers) < self._limits.workers and free < len(self._todo):
            self._workers.append(_Worker(self._limits))
            free += 1

    def _read(self, worker: _Worker) -> None:
        chunk = os.read(worker.process.stdout.fileno(), _LONGEST_REPLY + 1)
        worker.received += chunk
        if not chunk or len(worker.received) > _LONGEST_REPLY:
            self._drop(worker, late=False)
        elif worker.received.endswith(b"\n"):
            reply = _REPLY.fullmatch(worker.received)
            if not worker.ready and worker.received == b"ready\n":
                worker.ready = True
                worker.received = b""
            elif worker.pair and reply:
                self._settle(worker.pair, _ANSWERS[reply[1]], float(reply[2]))
                worker.pair = None
            else:
                self._drop(worker, late=False)

    def _settle(self, pair: Pair, answer: bool | None, cost: float) -> None:
        self.found[pair] = answer, cost
        self._left -= cost

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
        elif status == _FORBIDDEN or (crashed and failures > 1):
            self._settle(pair, None, self._limits.cpu_seconds)
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
        self.lost |= {pair for pair in self._todo if pair not in self._known}


_NUMBER = re.compile(r"[+-]?[0-9.]+")
_LONGEST_REPLY = 32  # bytes
_REPLY = re.compile(rb"(true|false|null|over) ([0-9]+\.[0-9]+)\n")
_ANSWERS = {b"true": True, b"false": False, b"null": None, b"over": None}
_FORBIDDEN = 70  # how a worker ends by what it compares, beside what it says
_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM)  # as by a kernel that is out of memory
_OWN_STOP = 1.0  # seconds that a wait lasts too long, by which this process itself was stopped
_MAX_FAILED_STARTS = 3
_QUESTION: ContextVar[Question | None] = ContextVar("question", default=None)
_COMPARER = Comparer(Limits())
atexit.register(_COMPARER.close)
os.register_at_fork(after_in_child=_COMPARER.forget_workers)
