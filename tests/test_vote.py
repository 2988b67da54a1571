"""Ballots worked out by hand."""

import numpy as np
import pytest

from ttrl_jax.reward.extract import Answer, extract
from ttrl_jax.reward.score import score
from ttrl_jax.reward.vote import Ballot, classes_of, vote


def ballot(*texts: str | None) -> Ballot:
    return vote([None if text is None else Answer(text) for text in texts])


def test_padded_and_plain_number_are_one_vote() -> None:
    given = (Answer("012"), Answer("7"), Answer("12"))
    assert ballot("012", "7", "12") == Ballot(given, (0, 1, 0), (2, 1), given[:2], 0)


def test_group_without_answers_has_no_label_and_zero_rewards() -> None:
    b = ballot(None, None)
    assert b == Ballot((None, None), (None, None), (), (), 0) and b.label is None and not b.tied
    assert score([b], [b.label]).tolist() == [[0.0, 0.0]]


def test_reward_does_not_depend_on_the_lengths_of_its_neighbours() -> None:
    answers = ["5", "6", "5", None]

    def rewards(lengths: list[int]) -> np.ndarray:
        texts = ["so " * n + ("" if a is None else rf"\boxed{{{a}}}") for n, a in zip(lengths, answers, strict=True)]
        b = vote([extract(text, strategies=("boxed",), thinking=False) for text in texts])
        return score([b], [b.label])

    assert rewards([1, 1, 1, 1]).tolist() == [[1.0, 0.0, 1.0, 0.0]]
    for lengths in ([500, 0, 3, 90], [0, 700, 0, 0], [1, 2, 3000, 4]):
        np.testing.assert_array_equal(rewards(lengths), rewards([1, 1, 1, 1]))


def test_the_first_of_those_that_lead_has_the_label() -> None:
    tied = ballot("5", "3", "7", "7.0", "3", "5", "1", None)
    assert (tied.leaders, tied.label, tied.tied) == ((0, 1, 2), 0, True)
    clear = ballot("5", "3", "3")
    assert (clear.leaders, clear.label, clear.tied) == ((1,), 1, False)


def test_pairs_that_are_not_decided_are_counted() -> None:
    # Too long to be compared symbolically or not a formula: the two texts stay apart.
    b = ballot(r"\int_0^1 x dx", r"\int_0^1 t dt", "5", "5")
    assert b.counts == (1, 1, 2) and b.undecided == 3


def test_empty_group_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one vote"):
        vote([])


def test_classes_of_answers_from_elsewhere():
    """Hand-worked: a label from before is found by what it means, and is no class where nobody gives it now."""
    ballots = [vote([Answer("7"), Answer("0.5"), None]), vote([Answer("3")]), vote([None])]
    assert classes_of(ballots, [Answer("1/2"), Answer("4"), Answer("3")]) == [1, None, None]
    assert classes_of(ballots, [None, Answer("3.0"), None]) == [None, 0, None]
