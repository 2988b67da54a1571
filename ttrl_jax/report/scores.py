"""What each question scored in an evaluation, and intervals from a bootstrap over questions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ttrl_jax.reward.estimates import maj_at_k
from ttrl_jax.run.files import ROLLOUTS
from ttrl_jax.run.metrics import read_lines

RESAMPLES, SEED = 10_000, 0
_FEWEST = 5  # questions; of fewer a bootstrap says nothing
_AT_ONCE = 2_000_000  # drawn indices

Scores = dict[str, dict[tuple[str, str], float]]  # kind -> (id, text) of a question -> its score


@dataclass(frozen=True)
class Interval:
    """A mean over questions with its 95 % interval, None where that is not known."""

    mean: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + ("" if self.low is None else f" [{self.low:.2f}, {self.high:.2f}]")


def read_scores(path: Path, task: str, step: int) -> Scores:
    """The scores of an evaluation of a run, from its generations; {} if they are missing or cannot be read."""
    rows, damaged = read_lines(path / ROLLOUTS / f"eval_{task}_{step:06}.jsonl")
    return {} if damaged else scores(rows)


def scores(rows: Iterable[Mapping[str, Any]]) -> Scores:
    """Of rows of generations with a truth, for each question: avg, the share of right samples; maj, whether their vote
    is right, ties split evenly; pass, whether one of them is. {} if a row is damaged."""
    found: Scores = {"avg": {}, "maj": {}, "pass": {}}
    for row in rows:
        try:
            if "truth" not in row:
                continue
            name, counts, right = (str(row["id"]), str(row["question"])), list(row["counts"]), row["right"]
            n = len(row["samples"])
            hits = 0 if right is None else counts[right]
            found["avg"][name], found["pass"][name] = hits / n, float(hits > 0)
            found["maj"][name] = maj_at_k(counts, right, n - sum(counts), n)
        except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError):
            return {}
    return found


def means(values: np.ndarray) -> np.ndarray:
    """Means of RESAMPLES resamples of the entries of `values`, float64 [N] -> [RESAMPLES]. The same for equal N."""
    random, n = np.random.default_rng(SEED), len(values)
    step = max(1, _AT_ONCE // n)
    parts = [
        values[random.integers(n, size=(min(step, RESAMPLES - done), n))].mean(1) for done in range(0, RESAMPLES, step)
    ]
    return np.concatenate(parts)


def interval(values: Sequence[float]) -> Interval:
    """The mean of the questions' values, and the percentile interval of a bootstrap over the questions."""
    known = np.asarray(values, np.float64)
    if len(known) < _FEWEST:
        return Interval(float(known.mean()))
    low, high = np.quantile(means(known), [0.025, 0.975])
    return Interval(float(known.mean()), float(low), float(high))


def pooled(found: Sequence[Scores], kind: str) -> dict[tuple[str, str], float]:
    """Each question's mean over several seeds; {} unless all have scored the same questions."""
    each = [scored.get(kind, {}) for scored in found]
    if not each or any(one.keys() != each[0].keys() for one in each):
        return {}
    return {name: float(np.mean([one[name] for one in each])) for name in each[0]}


def change(before: Mapping[Any, float], after: Mapping[Any, float]) -> Interval | None:
    """The mean change of a question with the interval of a paired bootstrap; None unless both have the same
    questions."""
    if not before or before.keys() != after.keys():
        return None
    return interval([after[name] - before[name] for name in before])
