"""What a run remembers of its votes: every visit of every question. Nothing here can see a truth."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ttrl_jax.reward.equivalence import same
from ttrl_jax.reward.extract import Answer
from ttrl_jax.reward.vote import Ballot


@dataclass(frozen=True)
class Visit:
    """How one question voted in one step."""

    step: int
    question: int  # its number in the data, from 0
    label: str | None  # the winner's answer; None if nobody answered
    share: float  # of all votes, for the label
    runner_up: float  # of all votes, for the most common class besides
    counts: tuple[int, ...]  # votes of each class, in order of first appearance
    no_answer: int  # votes without an answer
    length: float  # tokens of a response, mean
    flipped: bool | None  # whether the label is another than at the visit before; None: there was none


@dataclass(frozen=True)
class History:
    """All visits so far, in their order."""

    visits: tuple[Visit, ...] = ()

    @cached_property
    def of_question(self) -> Mapping[int, tuple[Visit, ...]]:
        """The visits of each question that has any."""
        found: dict[int, list[Visit]] = {}
        for visit in self.visits:
            found.setdefault(visit.question, []).append(visit)
        return {question: tuple(visits) for question, visits in found.items()}

    def visits_of(
        self,
        step: int,
        ids: Sequence[int],
        ballots: Sequence[Ballot],
        winners: Sequence[int | None],
        lengths: np.ndarray,
        *,
        same: Callable[[Answer, Answer], bool] = same,
    ) -> tuple[Visit, ...]:
        """A step's visits of the questions `ids` [P], for `add`; winners [P]: classes; lengths int [P, V], tokens,
        of which a ballot of fewer votes has the first.

        same: whether two answers are, by which a label has flipped or not.
        """
        new = []
        for i, ballot, winner, tokens in zip(ids, ballots, winners, lengths, strict=True):
            label, votes = None if winner is None else ballot.answers[winner].text, len(ballot.classes)
            others = [count for k, count in enumerate(ballot.counts) if k != winner]
            before = self.of_question[i][-1].label if i in self.of_question else None
            new.append(
                Visit(
                    step=step,
                    question=i,
                    label=label,
                    share=0.0 if winner is None else ballot.counts[winner] / votes,
                    runner_up=max(others, default=0) / votes,
                    counts=ballot.counts,
                    no_answer=ballot.classes.count(None),
                    length=float(tokens[:votes].mean()),
                    flipped=_differ(before, label, same) if i in self.of_question else None,
                )
            )
        return tuple(new)

    def add(self, visits: Sequence[Visit]) -> "History":
        """The history with these visits as its newest."""
        return History((*self.visits, *visits))

    def rows(self) -> list[dict[str, Any]]:
        """Every visit as a JSON object."""
        return [dataclasses.asdict(visit) for visit in self.visits]

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]]) -> "History":
        """The inverse of `rows`."""
        return cls(tuple(Visit(**{**row, "counts": tuple(row["counts"])}) for row in rows))


def _differ(before: str | None, now: str | None, same: Callable[[Answer, Answer], bool]) -> bool:
    if before is None or now is None:
        return before != now
    return not same(Answer(before), Answer(now))
