"""What the visits of questions say of a run: which labels were clear, which are others now, how different they are. No
truth is among them."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ttrl_jax.run.files import VOTES
from ttrl_jax.run.metrics import finite, read_lines

Visits = Sequence[Mapping[str, Any]]  # rows of votes.jsonl, by step
CLEAR = 0.3  # winner minus runner-up, of all votes of a visit; set with choice.CHANGED


def read_visits(run: Path) -> list[dict[str, Any]]:
    """What votes.jsonl of a run folder has; lines that are damaged are passed over."""
    return [row for row in read_lines(run / VOTES)[0] if _whole(row)]


def changed(visits: Visits, there: Iterable[int]) -> list[bool]:
    """Of the visits at the places `there`, those whose question had a clear label before the first of their steps:
    whether the label is another one than that. A question's label is clear from its first visit on that CLEAR of the
    votes decided. Labels are compared by `flipped`, as the task compares answers: two visits may spell one answer in
    two ways."""
    there = list(there)
    first, flips, begin = _first_clear(visits), _flips(visits), min((visits[i]["step"] for i in there), default=0)
    clear = [(first[q], i) for i in there if (q := visits[i]["question"]) in first]
    clear = [(before, i) for before, i in clear if visits[before]["step"] < begin]
    return [visits[a]["label"] != visits[b]["label"] and flips[b] > flips[a] for a, b in clear]


def diversity(labels: Sequence[str]) -> float:
    """The entropy of labels, in nats: ln 2 of as many yes as no, ln n of n different ones, 0 of one label for all."""
    return -sum(count / len(labels) * math.log(count / len(labels)) for count in Counter(labels).values())


def _whole(row: Mapping[str, Any]) -> bool:
    counts, numbers = row.get("counts"), ("step", "question", "no_answer", "share", "runner_up")
    return (
        set(numbers) <= finite(row).keys()
        and isinstance(row.get("label"), str | None)
        and isinstance(counts, list)
        and all(type(count) is int for count in counts)
        and sum(counts) + row["no_answer"] > 0
        and "flipped" in row
    )


def _first_clear(visits: Visits) -> dict[int, int]:
    """question -> the place of its first visit at which its label was clear."""
    found: dict[int, int] = {}
    for i, visit in enumerate(visits):
        if visit["share"] - visit["runner_up"] >= CLEAR:
            found.setdefault(visit["question"], i)
    return found


def _flips(visits: Visits) -> list[int]:
    """How often the label of its question has flipped, up to each visit."""
    count: dict[int, int] = {}
    found = []
    for visit in visits:
        count[visit["question"]] = count.get(visit["question"], 0) + bool(visit["flipped"])
        found.append(count[visit["question"]])
    return found
