"""Ballots and label-free metrics worked out by hand."""

import math
from collections import Counter

import numpy as np
import pytest

from ttrl_jax.reward.extract import Answer, extract
from ttrl_jax.reward.score import score, select
from ttrl_jax.reward.vote import Ballot, classes_of, label_keys, vote, vote_metrics


def ballot(*texts: str | None) -> Ballot:
    return vote([None if text is None else Answer(text) for text in texts])


def test_padded_and_plain_number_are_one_vote() -> None:
    assert ballot("012", "7", "12") == Ballot((0, 1, 0), (2, 1), (Answer("012"), Answer("7")), 0, False, 0)


def test_group_without_answers_has_no_label_and_zero_rewards() -> None:
    b = ballot(None, None)
    assert b == Ballot((None, None), (), (), None, False, 0)
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


def test_ties_are_drawn_by_seed_step_and_index_alone() -> None:
    tied = [Answer(text) for text in ("5", "3", "7", "7.0", "3", "5", "1")]
    assert vote(tied).label == 0
    draws = {(s, t, i): vote(tied, draw=(s, t, i)) for s in range(10) for t in range(10) for i in range(10)}
    assert all(b.tied and b.counts == (2, 2, 2, 1) for b in draws.values())
    assert all(vote(tied, draw=at).label == b.label for at, b in draws.items())
    seen = Counter(b.label for b in draws.values())
    assert set(seen) == {0, 1, 2}
    # Chi-square with 2 degrees of freedom: 13.8 is exceeded once in a thousand; the draws are fixed.
    assert sum((n - 1000 / 3) ** 2 / (1000 / 3) for n in seen.values()) < 13.8
    for varied in ([(0, 0, i) for i in range(10)], [(0, i, 0) for i in range(10)], [(i, 0, 0) for i in range(10)]):
        assert len({draws[at].label for at in varied}) > 1


def test_a_draw_changes_nothing_where_no_tie_is() -> None:
    texts = ["5", "3", None, "3"]
    group = [None if text is None else Answer(text) for text in texts]
    assert all(vote(group, draw=(seed, 0, 0)) == vote(group) for seed in range(20))
    assert vote([None], draw=(0, 0, 0)) == vote([None])


def test_pairs_that_are_not_decided_are_counted() -> None:
    # Too long to be compared symbolically or not a formula: the two texts stay apart.
    unclear = [r"5 \pmod{7}", r"5 \bmod{7}", "5", "5"]
    b = ballot(*unclear)
    assert b.counts == (1, 1, 2) and b.undecided == 3
    metrics = vote_metrics([b, ballot("1", "2", "2", "2")], np.ones((2, 4)), np.zeros((2, 1), np.int32), {}, ids=[0, 1])
    assert metrics["undecided"] == 1.5


def test_empty_group_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one vote"):
        vote([])


def test_metrics_by_hand() -> None:
    ballots = [
        ballot("1", "1", "1", "1"),  # unanimous
        ballot("2", None, "3", "3"),  # 3 wins by 2 to 1
        ballot("4", "5", None, None),  # tie, 4 seen first
        ballot(None, None, None, None),  # no label
    ]
    rewards = score(ballots, [b.label for b in ballots])
    metrics = vote_metrics(ballots, rewards, select(rewards, samples=2), {}, ids=[0, 1, 2, 3])
    two_to_one = 2 / 3 * math.log(3 / 2) + 1 / 3 * math.log(3)
    assert metrics == pytest.approx(
        {
            "majority_ratio": (4 + 2 + 1 + 0) / 4 / 4,
            "runner_up_margin": (4 + 1 + 0 + 0) / 4 / 4,
            "majority_voting_reward": (2 + 0 + 1 + 0) / 8,  # of the first two of each group
            "rewards/mean": 3 / 8,
            "rewards/max": 1.0,
            "rewards/min": 0.0,
            "no_answer_rate": 7 / 16,
            "no_label_rate": 1 / 4,
            "tie_rate": 1 / 4,
            "unanimous": 1 / 4,
            "distinct_answers": (1 + 2 + 2 + 0) / 4,
            "vote_entropy": (0 + two_to_one + math.log(2) + 0) / 4,
            "undecided": 0.0,
            "distinct_labels": 3 / 3,  # 1, 3 and 4
            "zero_advantage_groups": 3 / 4,  # the first, the second (0, 0) and the last
        }
    )
    assert all(type(value) is float for value in metrics.values())


def test_flip_rate_counts_only_questions_seen_before() -> None:
    ballots = [ballot("012"), ballot("7"), ballot(None), ballot("x")]
    rewards = score(ballots, [0, 0, None, 0])
    chosen = select(rewards, samples=1)
    before = {10: "n:12", 11: "n:8", 12: "n:3"}  # same, changed, lost its label; 13 is new
    assert vote_metrics(ballots, rewards, chosen, before, ids=[10, 11, 12, 13])["flip_rate"] == 2 / 3
    assert vote_metrics(ballots, rewards, chosen, {12: None}, ids=[10, 11, 12, 13])["flip_rate"] == 0.0
    assert "flip_rate" not in vote_metrics(ballots, rewards, chosen, {99: "n:1"}, ids=[10, 11, 12, 13])
    assert label_keys(ballots) == ["n:12", "n:7", None, "e:1*x^1"]


def test_labels_that_questions_share() -> None:
    """Hand-worked: 12, 7, 12.0 are two labels of three questions; a question without a label does not count."""
    ballots = [ballot("12"), ballot("7"), ballot("12.0"), ballot(None)]
    rewards = score(ballots, [b.label for b in ballots])
    chosen = select(rewards, samples=1)
    assert vote_metrics(ballots, rewards, chosen, {}, ids=[0, 1, 2, 3])["distinct_labels"] == 2 / 3
    nobody = vote_metrics([ballot(None)], np.zeros((1, 1)), np.zeros((1, 1), np.int32), {}, ids=[0])
    assert "distinct_labels" not in nobody


def test_a_vote_without_answer_breaks_unanimity() -> None:
    ballots = [ballot("1", "1", None)]
    rewards = score(ballots, [0])
    metrics = vote_metrics(ballots, rewards, select(rewards, samples=3), {}, ids=[0])
    assert metrics["unanimous"] == 0.0 and metrics["majority_ratio"] == pytest.approx(2 / 3)
    assert metrics["runner_up_margin"] == pytest.approx(2 / 3)


def test_classes_of_answers_from_elsewhere():
    """Hand-worked: a label from before is found by what it means, and is no class where nobody gives it now."""
    ballots = [vote([Answer("7"), Answer("0.5"), None]), vote([Answer("3")]), vote([None])]
    assert classes_of(ballots, [Answer("1/2"), Answer("4"), Answer("3")]) == [1, None, None]
    assert classes_of(ballots, [None, Answer("3.0"), None]) == [None, 0, None]
