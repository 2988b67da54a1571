"""Hand-worked: when the label of a model that has adapted to a question takes the place of the start's."""

import itertools
from math import comb, sqrt

import pytest

from ttrl_jax.reward.adoption import AGREED, CUT, NEW, SHARE, SILENT, UNANSWERED, Poll, hopeless, refusal, rises
from ttrl_jax.reward.extract import Answer
from ttrl_jax.reward.vote import vote


def poll(*answers: str | None, cut: int = 0) -> Poll:
    ballot = vote([None if answer is None else Answer(answer) for answer in answers])
    return Poll(ballot, ballot.label, cut)


def of(counts: dict[str, int], *, silent: int = 0, cut: int = 0) -> Poll:
    return poll(*(answer for answer, count in counts.items() for _ in range(count)), *[None] * silent, cut=cut)


@pytest.mark.parametrize(
    ("before", "after", "votes", "expected"),
    [
        # V d^2 > 2 s (2V - s), with d the difference of the counts and s their sum
        (12, 16, 16, True),  # 16 * 16 = 256 > 2 * 28 * 4 = 224
        (13, 16, 16, False),  # 16 * 9 = 144 < 2 * 29 * 3 = 174
        (2, 8, 16, True),  # 16 * 36 = 576 > 2 * 10 * 22 = 440
        (2, 7, 16, False),  # 16 * 25 = 400 < 2 * 9 * 23 = 414
        (0, 2, 2, False),  # 2 * 4 = 8 = 2 * 2 * 2: two standard errors, and not more
        (0, 4, 16, True),  # 16 * 16 = 256 > 2 * 4 * 28 = 224
        (8, 2, 16, False),  # it has fallen
        (5, 5, 16, False),
    ],
)
def test_a_rise_above_chance(before: int, after: int, votes: int, expected: bool):
    assert rises(before, after, votes=votes) == expected


def test_a_rise_is_two_standard_errors():
    """Slow twin: the formula of the docstring in floating point, where it is not on the very border."""
    seen = set()
    for votes in range(1, 25):
        for before, after in itertools.product(range(votes + 1), repeat=2):
            p = (before + after) / (2 * votes)
            over = (after - before) / votes - 2 * sqrt(2 * p * (1 - p) / votes)
            if abs(over) > 1e-9:
                assert rises(before, after, votes=votes) == (over > 0)
                seen.add(over > 0)
    assert seen == {True, False}


@pytest.mark.parametrize("votes", [8, 16, 64])
def test_chance_alone_rises_rarely(votes: int):
    """What is promised: two polls of the same share p are told apart in less than 5 of 100 cases, whatever p is."""

    def chance(p: float, count: int) -> float:
        return comb(votes, count) * p**count * (1 - p) ** (votes - count)

    pairs = [pair for pair in itertools.product(range(votes + 1), repeat=2) if rises(*pair, votes=votes)]
    worst = max(sum(chance(p, b) * chance(p, a) for b, a in pairs) for p in [k / 20 for k in range(1, 20)])
    assert 0.005 < worst < 0.05


def test_each_reason():
    start = of({"7": 2, "8": 5}, silent=1)
    assert (start.top, start.silent, start.votes, start.label) == (5, 1, 8, Answer("8"))
    # 8 * (8 - 2)^2 = 288 > 2 * 10 * 6 = 120, for the tops 2 and 8 of 8
    weak = of({"7": 1, "8": 2, "1": 1, "2": 1, "3": 1, "4": 1}, silent=1, cut=1)
    assert refusal(weak, of({"8": 8})) is None
    assert refusal(weak, of({"7": 8}, cut=1)) is None  # another label, which the start gave too
    assert refusal(weak, of({"7.0": 8})) is None  # spelled in another way
    assert refusal(weak, of({"9": 8})) == NEW
    assert refusal(weak, of({"8": 8}, cut=2)) == CUT
    assert refusal(weak, of({"8": 6}, silent=2)) == SILENT
    assert refusal(weak, of({}, silent=8)) == SILENT
    # 8 * (5 - 2)^2 = 72 < 2 * 7 * 9 = 126
    assert refusal(weak, of({"8": 5, "7": 3})) == SHARE
    assert refusal(weak, of({"9": 5, "7": 3})) == SHARE
    with pytest.raises(ValueError, match="8 and 7 votes"):
        refusal(weak, of({"8": 7}))


def test_sameness_is_the_task_s_own():
    start, later = of({"a": 1, "b": 1, "c": 1, "d": 1}), of({"A": 4})
    assert refusal(start, later) == NEW
    assert refusal(start, later, same=lambda one, other: one.text.lower() == other.text.lower()) is None


def test_no_step_is_spared_that_could_have_been_kept():
    """Semantics: after a hopeless start every ballot is refused, and after any other one the best ballot is not."""
    answers, seen = ("1", "2", None), set()  # the order of votes changes nothing
    for first in itertools.combinations_with_replacement(answers, 5):
        start = poll(*first)
        seen.add(why := hopeless(start))
        laters = [poll(*later) for later in itertools.combinations_with_replacement(answers, 5)]
        refused = [refusal(start, later) for later in laters]
        assert (None in refused) == (why is None), first
    assert seen == {None, UNANSWERED, AGREED}
    # 16 * (16 - 13)^2 = 144 < 2 * 29 * 3 = 174, and with 12 it is 256 > 224
    assert hopeless(of({"8": 13, "7": 3})) == AGREED and hopeless(of({"8": 12, "7": 4})) is None
    assert hopeless(of({}, silent=4)) == UNANSWERED
