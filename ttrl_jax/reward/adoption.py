"""Whether the answer of a model that has adapted to one question takes the place of the start's. No truth is seen.

Two ballots are compared: that of the start, which the first step learned from, and one that was cast afterwards, from
which nothing was learned. A model that learns its own majority agrees with itself more, whether that is right or wrong:
so these signals see chance, silence and answers from nowhere. They do not see a wrong belief.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ttrl_jax.reward.equivalence import same
from ttrl_jax.reward.extract import Answer
from ttrl_jax.reward.vote import Ballot, classes_of

UNANSWERED, AGREED = "unanswered", "agreed"  # why no step is taken
SILENT, CUT, SHARE, NEW = "silent", "cut", "share", "new"  # why an answer is not adopted


@dataclass(frozen=True)
class Poll:
    """The votes on one question."""

    ballot: Ballot
    winner: int | None  # the class of the label; None if nobody answered
    cut: int  # responses that reached the limit

    @property
    def votes(self) -> int:
        return len(self.ballot.classes)

    @property
    def top(self) -> int:
        """Votes for the label."""
        return 0 if self.winner is None else self.ballot.counts[self.winner]

    @property
    def silent(self) -> int:
        """Responses without an answer."""
        return self.ballot.classes.count(None)

    @property
    def label(self) -> Answer | None:
        return None if self.winner is None else self.ballot.answers[self.winner]


def rises(before: int, after: int, *, votes: int) -> bool:
    """Whether a share of `after` of V votes is above one of `before` of as many by more than chance: by more than two
    standard errors of the difference of two equal shares, 2 sqrt(2 p (1 - p) / V) with p their mean. Exact."""
    both = before + after
    return after > before and votes * (after - before) ** 2 > 2 * both * (2 * votes - both)


def hopeless(start: Poll) -> str | None:
    """Why no ballot that may come can be adopted, so that no step need be taken; None where one can."""
    if start.winner is None:
        return UNANSWERED
    return None if rises(start.top, start.votes, votes=start.votes) else AGREED


def refusal(start: Poll, later: Poll, *, same: Callable[[Answer, Answer], bool] = same) -> str | None:
    """Why the label of `later` does not take the place of the start's; None where it does: if its share has risen by
    more than chance, no more responses are cut off or without an answer, and the start gave that answer too.

    same: whether two answers are. Raises ValueError for ballots of different numbers of votes.
    """
    if start.votes != later.votes:
        raise ValueError(f"refusal() compares ballots of one size, got {start.votes} and {later.votes} votes")
    if later.silent > start.silent:
        return SILENT
    if later.cut > start.cut:
        return CUT
    if not rises(start.top, later.top, votes=start.votes):
        return SHARE
    return None if classes_of([start.ballot], [later.label], same=same) != [None] else NEW
