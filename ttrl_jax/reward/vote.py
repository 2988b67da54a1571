"""Let the answers to a question vote (arXiv 2504.16084, section 2). `judge.py` decides which rewards the votes get."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ttrl_jax.reward.equivalence import Clusters, cluster, key, same
from ttrl_jax.reward.extract import Answer
from ttrl_jax.reward.symbolic import Undecided, question

# Processor time for finding one answer among those of a ballot. With that of the vote, `symbolic.Limits`, 5 seconds.
_FIND_SECONDS = 2.0


@dataclass(frozen=True)
class Ballot:
    """The votes on one question. Class ids count from 0 in order of first appearance."""

    votes: tuple[Answer | None, ...]  # [V] each as it was given; None where there was no answer
    classes: tuple[int | None, ...]  # [V] class of each vote
    counts: tuple[int, ...]  # votes per class
    answers: tuple[Answer, ...]  # per class, the answer that was seen first
    undecided: int  # pairs of answers that may be the same, which could not be decided; they count as different
    pairs: tuple[Undecided, ...] = ()  # those of them, up to `2 * equivalence.MAX_PAIRS`

    @property
    def leaders(self) -> tuple[int, ...]:
        """The classes that have the most votes: none if nobody answered, several in a tie."""
        return tuple(i for i, count in enumerate(self.counts) if count == max(self.counts))

    @property
    def label(self) -> int | None:
        """The most common class, in a tie the one seen first; None if nobody answered."""
        return self.leaders[0] if self.counts else None

    @property
    def tied(self) -> bool:
        return len(self.leaders) > 1


def vote(group: Sequence[Answer | None], *, classes: Callable[[Sequence[Answer | None]], Clusters] = cluster) -> Ballot:
    """Count the V answers to one question. None never votes.

    classes: which of them are the same; the default is that of mathematics. Raises ValueError for an empty group.
    """
    if not group:
        raise ValueError("vote() needs at least one vote, got an empty group")
    with question() as asked:
        clusters = classes(group)
    first: dict[int, Answer] = {}
    counts: list[int] = []
    for answer, i in zip(group, clusters.ids, strict=True):
        if answer is None or i is None:
            continue
        if i not in first:
            first[i] = answer
            counts.append(0)
        counts[i] += 1
    answers, pairs = tuple(first.values()), tuple(asked.undecided)
    return Ballot(tuple(group), clusters.ids, tuple(counts), answers, clusters.undecided, pairs)


def classes_of(
    ballots: Sequence[Ballot], answers: Sequence[Answer | None], *, same: Callable[[Answer, Answer], bool] = same
) -> list[int | None]:
    """Return the class of each answer [P] in the ballot of its question, None if no vote has it or there is no answer.

    A vote with the same spelling is taken first, then one with the same key, then one that is the same by a rule of the
    ballot: a truth of `50\\%` is 1/2 if that was voted, and else 50.
    """
    found = []
    for ballot, answer in zip(ballots, answers, strict=True):
        alike = [i for i, other in enumerate(ballot.answers) if other == answer]
        with question(_FIND_SECONDS):
            if alike and same(answer, answer):
                found.append(alike[0])
                continue
            others = [i for i, other in enumerate(ballot.answers) if answer is not None and same(other, answer)]
            voted = zip(ballot.votes, ballot.classes, strict=True)
            keyed = [i for vote, i in voted if vote and answer and i is not None and key(vote) == key(answer)]
            found.append(next((i for i in keyed if i in others), others[0] if others else None))
    return found
