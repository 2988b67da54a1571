"""The worker's side of a benchmark: one process per side, which is asked over its stdin and answers on its stdout.

The driver (`bench.py`) keeps a worker of each side alive and asks them in turn, so that loading and compiling are paid
once and the sides are timed minutes apart on the same machine. A worker that is not asked waits for its stdin, without
using the processor. Standard library only: this runs in every side's own environment.
"""

import json
import os
import queue
import random
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[[], dict[str, Any]]  # does the timed work once; returns what is to be recorded beside the seconds
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def serve(makers: dict[str, Callable[[dict[str, Any]], Run]], *, versions: dict[str, str], compiling: Callable) -> None:
    """Answer the driver, which asks for one shape to be prepared and then for runs of it, until it closes our stdin.

    makers: for each benchmark, what makes a Run of a shape; it compiles and warms up, and its time is not measured.
    compiling: returns the seconds spent compiling so far.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to stderr, which the driver keeps in a file
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "prepare":
            run = makers[request["bench"]](request["shape"])
            answer = {"compile_seconds": round(compiling(), 2), "versions": versions}
        else:
            _forget_peak()
            start = time.perf_counter()
            recorded = run()
            answer = {"seconds": time.perf_counter() - start, **recorded, "peak_gb": round(_peak_gb(), 3)}
        print(json.dumps(answer), file=answers, flush=True)


def prompt_ids(shape: dict[str, Any], *, vocab: int) -> list[list[int]]:
    """Random prompts of shape["prompts"] x shape["prompt_tokens"], the same on every side."""
    rng = random.Random(0)
    return [[rng.randrange(100, vocab) for _ in range(shape["prompt_tokens"])] for _ in range(shape["prompts"])]


def response_ids(shape: dict[str, Any], *, vocab: int) -> list[list[list[int]]]:
    """Random responses, prompts x samples x new_tokens, the same on every side."""
    rng = random.Random(1)
    sizes = shape["prompts"], shape["samples"], shape["new_tokens"]
    return [[[rng.randrange(100, vocab) for _ in range(sizes[2])] for _ in range(sizes[1])] for _ in range(sizes[0])]


def advantages(shape: dict[str, Any]) -> list[float]:
    """One for each row of prompts x samples, as if every other answer agreed with the label."""
    return [1.0 if i % 2 else -1.0 for i in range(shape["prompts"] * shape["samples"])]


def questions(count: int) -> list[str]:
    """Texts of about 60 tokens that a language model goes on from."""
    return ["Q: What is 3 + 4?\nA: 7\n" * 3 + f"Q: What is {i} + 2?\nA:" for i in range(count)]


def majority_rewards(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """1 for each completion whose last number is the most common one among those of its prompt, 0 for the others."""
    answers = [(re.findall(r"-?\d+", text) or [None])[-1] for text in completions]
    labels = {}
    for prompt in set(prompts):
        votes = [a for a, p in zip(answers, prompts, strict=True) if p == prompt and a is not None]
        labels[prompt] = max(votes, key=votes.count) if votes else None
    return [float(a is not None and a == labels[p]) for a, p in zip(answers, prompts, strict=True)]


class Turns:
    """A trainer that owns its loop, run one step at a time.

    train: called in a thread with this object; it calls `begin` before and `end` after each step.
    """

    def __init__(self, train: Callable[["Turns"], None]):
        self._asked: queue.SimpleQueue = queue.SimpleQueue()
        self._done: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._train, args=(train,), daemon=True).start()

    def __call__(self) -> None:
        """Let the trainer make one step, and wait for its end. Raises what the trainer raised."""
        self._asked.put(None)
        error = self._done.get()
        if error is not None:
            raise error

    def begin(self) -> None:
        self._asked.get()

    def end(self) -> None:
        self._done.put(None)

    def _train(self, train: Callable[["Turns"], None]) -> None:
        try:
            train(self)
            self._done.put(RuntimeError("the trainer came to the end of its loop"))
        except BaseException as error:
            self._done.put(error)


class JaxCompiles:
    """Seconds that JAX has spent tracing, lowering and compiling. Calls within others count once."""

    def __init__(self, jax: Any):
        self._spans: list[tuple[float, float]] = []
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, name: str, seconds: float, **_: Any) -> None:
        if name.startswith("/jax/core/compile/"):
            end = time.perf_counter()
            while self._spans and self._spans[-1][0] >= end - seconds:
                self._spans.pop()
            self._spans.append((end - seconds, end))

    def __call__(self) -> float:
        return sum(end - start for start, end in self._spans)


def _forget_peak() -> None:
    if _CLEAR.exists():
        _CLEAR.write_text("5")  # Linux: the peak of resident memory starts anew


def _peak_gb() -> float:
    """The most resident memory of this process since `_forget_peak`; nan where Linux's /proc is missing."""
    if not _STATUS.exists():
        return float("nan")
    return int(re.search(r"VmHWM:\s+(\d+)", _STATUS.read_text())[1]) * 1024 / 1e9
