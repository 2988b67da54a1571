"""Hand-worked: what a step's votes say without any truth."""

import dataclasses
import math

import numpy as np
import pytest

from ttrl_jax.reward.equivalence import classes_by
from ttrl_jax.reward.extract import Answer
from ttrl_jax.reward.history import History
from ttrl_jax.reward.judge import Draw, Evidence, Judge, Verdict
from ttrl_jax.reward.score import select
from ttrl_jax.reward.signals import vote_metrics
from ttrl_jax.reward.vote import Ballot, vote


def ballot(*texts: str | None) -> Ballot:
    return vote([None if text is None else Answer(text) for text in texts])


def judged(ballots: list[Ballot]) -> Verdict:
    nothing = np.zeros((len(ballots), len(ballots[0].classes)))
    return Judge()(ballots, Evidence(nothing, nothing, None), History(), Draw(0, 0, range(len(ballots))))


def test_metrics_by_hand() -> None:
    ballots = [
        ballot("1", "1", "1", "1"),  # unanimous
        ballot("2", None, "3", "3"),  # 3 wins by 2 to 1
        ballot("4", "5", None, None),  # tie, 4 seen first
        ballot(None, None, None, None),  # no label
    ]
    verdict = judged(ballots)
    metrics = vote_metrics(ballots, verdict, select(verdict.rewards, samples=2), [None] * 4)
    two_to_one = 2 / 3 * math.log(3 / 2) + 1 / 3 * math.log(3)
    assert metrics == pytest.approx(
        {
            "majority_ratio": (4 + 2 + 1 + 0) / 4 / 4,
            "runner_up_margin": (4 + 1 + 0 + 0) / 4 / 4,
            "majority_voting_reward": (2 + 0 + 1 + 0) / 8,  # of the first two of each group
            "rewards/mean": 3 / 8,
            "rewards/max": 1.0,
            "rewards/min": 0.0,
            "accuracy_reward": 3 / 8,
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
    ballots = [ballot("12"), ballot("7"), ballot(None), ballot("x")]
    verdict = judged(ballots)
    chosen = select(verdict.rewards, samples=1)
    assert vote_metrics(ballots, verdict, chosen, [False, True, True, None])["flip_rate"] == 2 / 3
    assert vote_metrics(ballots, verdict, chosen, [None, None, False, None])["flip_rate"] == 0.0
    assert "flip_rate" not in vote_metrics(ballots, verdict, chosen, [None] * 4)


def test_labels_that_questions_share() -> None:
    """Hand-worked: 12, 7, 12.0 are two labels of three questions; a question without a label does not count."""
    ballots = [ballot("12"), ballot("7"), ballot("12.0"), ballot(None)]
    verdict = judged(ballots)
    chosen = select(verdict.rewards, samples=1)
    assert vote_metrics(ballots, verdict, chosen, [None] * 4)["distinct_labels"] == 2 / 3
    by_length = classes_by(lambda one, other: len(one.text) == len(other.text))  # 12 is 2 long, 7 is 1, 12.0 is 4
    assert vote_metrics(ballots, verdict, chosen, [None] * 4, classes=by_length)["distinct_labels"] == 1.0
    nobody = vote_metrics([ballot(None)], judged([ballot(None)]), np.zeros((1, 1), np.int32), [None])
    assert "distinct_labels" not in nobody


def test_a_question_that_is_left_out_has_no_gradient() -> None:
    """The gate: 2 of 4 votes are no more than 0.15 ahead of 2. Its rewards differ where the rule does not see to it."""
    ballots = [ballot("1", "1", "2", "2"), ballot("1", "1", "1", "2")]
    every, nothing = np.tile(np.arange(4), (2, 1)), np.zeros((2, 4))
    verdict = Judge(rule="gate")(ballots, Evidence(nothing, nothing, None), History(), Draw(0, 0, range(2)))
    metrics = vote_metrics(ballots, verdict, every, [None] * 2)
    assert metrics["zero_advantage_groups"] == 1 / 2 and metrics["no_label_rate"] == 0
    assert metrics["accuracy_reward"] == metrics["majority_voting_reward"] == 3 / 8
    formed = dataclasses.replace(verdict, rewards=verdict.rewards + np.float32([[0, 0.1, 0, 0]] * 2))
    assert vote_metrics(ballots, formed, every, [None] * 2)["zero_advantage_groups"] == 1 / 2


def test_a_vote_without_answer_breaks_unanimity() -> None:
    ballots = [ballot("1", "1", None)]
    metrics = vote_metrics(ballots, judged(ballots), np.arange(3)[None], [None])
    assert metrics["unanimous"] == 0.0 and metrics["majority_ratio"] == pytest.approx(2 / 3)
    assert metrics["runner_up_margin"] == pytest.approx(2 / 3)


def test_undecided_pairs_are_a_mean_over_the_questions() -> None:
    ballots = [ballot(r"\int_0^1 x dx", r"\int_0^1 t dt", "5", "5"), ballot("1", "2", "2", "2")]
    metrics = vote_metrics(ballots, judged(ballots), np.zeros((2, 1), np.int32), [None, None])
    assert metrics["undecided"] == 1.5
