"""Votes that stop: how many votes on a question, in their order, certify which of its answers is the most common one.

The certificate is of the mode: of the answer that the model gives most often. Nothing here says that it is right.

Each vote is a bet on the leader of the votes before it. Against each rival there is a capital, 1 at first. A vote for
the leader multiplies it by 2q, one for the rival by 2(1 - q), others leave it; while the rival itself leads, nothing is
bet against it. If no answer is likelier than the rival, none of this gains on average, for no q from 1/2 to 1, so that
the capital reaches a number c with a chance of at most 1/c, whenever one looks (Ville's inequality). Nor does the mean
over all of these q gain, which after s votes for leaders and f for the rival is

    E(s, f) = (sum of C(s + f + 1, k) over k = 0 .. s) / ((s + f + 1) C(s + f, s)).

The leader is certified once the capital against each rival is at least 2 / error. Rivals are the other answers, one
that nobody has given yet (f = 0), and having no answer, which never leads. An answer that is not the mode is certified
with a chance of at most error / 2, because the capital against the mode must be that high. If two answers are equally
likely, that against one of them must be, which has a chance of at most error; of more than two, those against all but
one.

One against one is the principle of arXiv 2109.05047, with the prior there cut at 1/2. It divides the error among the
answers; betting on the leader of the moment needs no such division, and decides earlier (scripts/check_stopping.py).
The leader against all others together decides nothing where it has less than half of the votes.
"""

import functools
from collections.abc import Callable, Sequence
from fractions import Fraction
from math import comb

from ttrl_jax.reward.extract import Answer

# Whether two answers are the same in every ballot; None: that depends, or is not known without taking time.
Surely = Callable[[Answer, Answer], bool | None]

_NOBODY = 0  # the place of having no answer


def capital(wins: int, losses: int) -> Fraction:
    """Return E(wins, losses), the capital against a rival; wins: votes for leaders, losses: votes for the rival."""
    votes = wins + losses
    return Fraction(sum(comb(votes + 1, k) for k in range(wins + 1)), (votes + 1) * comb(votes, wins))


@functools.lru_cache
def wins_needed(error: float, votes: int) -> tuple[int, ...]:
    """Return for 0, 1 .. `votes` losses how many wins make the capital 2 / error; votes + 1 where so many votes cannot.

    A win raises the capital and a loss lowers it, so that this is all there is to ask of a rival. Exact, so the same on
    every machine. Raises ValueError unless 0 < error < 1.
    """
    if not 0 < error < 1:
        raise ValueError(f"an error rate is above 0 and below 1, got {error}")
    needed, wins = [], 0
    for losses in range(votes + 1):
        while wins + losses <= votes and Fraction(error) * capital(wins, losses) < 2:
            wins += 1
        needed.append(wins if wins + losses <= votes else votes + 1)
    return tuple(needed)


class Race:
    """The votes on one question, one after the other, and whether their leader is certified.

    Two answers that nobody has compared yet, and that are the same, would look like two weak rivals, and the leader
    would be certified too early. So answers that may be the same are one rival, and those that may be the leader's are
    a rival of it. Both only lower a capital, and delay the end: with fewer wins and more losses than the rival has by
    what the answers mean. For the same reason votes of the past may be counted anew when a later answer joins two
    rivals: what must never look back is the capital that is meant, not its bound.
    """

    def __init__(self, needed: Sequence[int], surely: Surely) -> None:
        """needed: by `wins_needed`, for as many votes as may come."""
        self.votes = 0
        self._needed, self._surely = needed, surely
        self._places: dict[Answer | None, int] = {None: _NOBODY}  # of each answer as it was written
        self._answers: list[Answer | None] = [None]  # by place: the first of those that are surely the same
        self._counts, self._led = [0], [0]  # by place: all votes, and those that came while it led
        self._rivals = [_NOBODY]  # by place: those with one number may be the same
        self._leader = _NOBODY

    def add(self, answer: Answer | None) -> None:
        """Count the next vote; None: it has no answer."""
        at = self._place(answer)
        self.votes += 1
        self._counts[at] += 1
        if at == self._leader and at != _NOBODY:
            self._led[at] += 1
        most = self._counts[self._leader] if self._leader != _NOBODY else 0
        if at != _NOBODY and (self._counts[at], -at) > (most, -self._leader):  # of equal ones the first to appear leads
            self._leader = at

    @property
    def certified(self) -> bool:
        """Whether the leader of the votes so far is certified."""
        return self.missing == 0

    @property
    def missing(self) -> int:
        """How many more votes for the leader, and none for others, would certify it."""
        if self._leader == _NOBODY:
            return self._needed[0]
        wins, most = sum(self._led), self._counts[self._leader]
        counts, led = [0] * len(self._counts), [0] * len(self._counts)
        for at, rival in enumerate(self._rivals):
            if at != self._leader:
                counts[rival] += self._counts[at]
                led[rival] += self._led[at]
        pairs = list(zip(counts, led, strict=True))
        return max(
            *(self._needed[count - own] - (wins - own) for count, own in pairs),
            *(count + 1 - most for count, _ in pairs),
            self._needed[0] - wins,
            0,
        )

    def _place(self, answer: Answer | None) -> int:
        """The place of an answer, a new one if it is surely none of those before."""
        if answer not in self._places:
            self._places[answer] = _NOBODY if self._surely(answer, answer) is False else self._find(answer)
        return self._places[answer]

    def _find(self, answer: Answer) -> int:
        joined = set()
        for at, other in enumerate(self._answers):
            alike = False if other is None else self._surely(other, answer)
            if alike:
                return at
            if alike is None:
                joined.add(self._rivals[at])
        new = len(self._answers)
        self._answers.append(answer)
        self._counts.append(0)
        self._led.append(0)
        self._rivals = [new if rival in joined else rival for rival in (*self._rivals, new)]
        return new


class Poll:
    """The votes on one question as they end, in any order, and how many of them are wanted.

    The votes that count are the fewest, at least `least`, that certify their leader in the order of their numbers,
    never in that in which they end. So neither slots nor devices nor other questions change them.
    """

    def __init__(self, *, votes: int, least: int, error: float, surely: Surely) -> None:
        """votes: the most that may be cast."""
        needed = wins_needed(error, votes)
        self._votes, self._least, self._wanted = votes, least, least
        self._counted, self._ended = Race(needed, surely), Race(needed, surely)  # in their order; as they end
        self._early: dict[int, Answer | None] = {}  # those that ended before others that come before them
        self._enough = False

    def end(self, vote: int, answer: Answer | None) -> None:
        """A vote has ended."""
        self._ended.add(answer)
        self._early[vote] = answer
        while not self._enough and self._counted.votes in self._early:
            self._counted.add(self._early.pop(self._counted.votes))
            self._enough = self._counted.votes >= self._least and self._counted.certified

    def wanted(self) -> int:
        """Return how many votes are wanted now, the first ones: asked now and then, at last those that count.

        At first only `least`, since a vote that is drawn beside them is drawn in vain where they are enough. None more
        while those that have ended would certify their leader. Else as many as it lacks, or an eighth of all more, if
        no more than half of `least` run then. This decides what is drawn in vain, never what counts.
        """
        if self._enough:
            return self._counted.votes
        while self._counted.votes >= self._wanted or not self._ended.certified:
            eighth, half = self._wanted + -(-self._votes // 8), self._ended.votes + -(-self._least // 2)
            lacking = self._ended.votes + self._ended.missing
            self._wanted = max(self._wanted, min(self._votes, max(lacking, min(eighth, half))))
            if self._counted.votes < self._wanted or self._wanted == self._votes:
                break
        return self._wanted
