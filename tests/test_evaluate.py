"""Hand-worked: what an evaluation says of a few samples."""

import numpy as np
import pytest

from ttrl_jax.data.problems import Problem
from ttrl_jax.evaluate import evaluate, generations, table
from ttrl_jax.records import Rollouts
from ttrl_jax.reward.extract import Answer
from ttrl_jax.reward.vote import vote


def answers(*texts: str | None) -> list[Answer | None]:
    return [None if text is None else Answer(text) for text in texts]


GROUPS = [
    answers("5", "5", "7", None),  # 2 of 4 right, the vote too
    answers("1", "2", "2", "3"),  # 1 of 4 right, the vote is not
    answers("9", "9.0", "09", "9"),  # all right
]
TRUTHS = ["5", "1", "9"]
LENGTHS = np.array([[3, 3, 3, 8], [4, 4, 4, 4], [5, 5, 5, 5]])
TRUNCATED = np.array([[False, False, False, True]] + [[False] * 4] * 2)


def test_with_truths():
    result = evaluate(GROUPS, TRUNCATED, LENGTHS, TRUTHS)
    assert result == pytest.approx(
        {
            "majority_ratio": (2 / 4 + 2 / 4 + 4 / 4) / 3,
            "truncation_rate": 1 / 12,
            "no_answer_rate": 1 / 12,
            "response_length": 53 / 12,
            "avg@4": (2 / 4 + 1 / 4 + 1) / 3,
            "std@4": (0.5 + (3 / 16) ** 0.5 + 0) / 3,
            "worst@4": 1 / 3,
            # of the 6 pairs: all but (7, None) have a 5; 3 have the 1
            "pass@2": (5 / 6 + 3 / 6 + 1) / 3,
            # 55: right; 57 twice: half each; 5 with None twice: right; 7 with None: wrong
            # 12 twice, 13: half each; 22, 23 twice: the truth has no vote
            "maj@2": ((1 + 2 * 0.5 + 2) / 6 + 3 * 0.5 / 6 + 1) / 3,
            "pass@4": 1.0,
            "maj@4": (1 + 0 + 1) / 3,
        }
    )


def test_without_truths_only_what_needs_none():
    result = evaluate(GROUPS, TRUNCATED, LENGTHS, None)
    assert set(result) == {"majority_ratio", "truncation_rate", "no_answer_rate", "response_length"}


def test_a_sample_count_that_is_no_power_of_two():
    result = evaluate([answers("1", "1", "2")], np.zeros((1, 3), bool), np.ones((1, 3)), ["1"])
    assert result["avg@3"] == pytest.approx(2 / 3)
    assert result["maj@3"] == result["pass@3"] == 1
    assert result["pass@2"] == 1 and "pass@4" not in result


def test_generations_say_what_became_of_each_response():
    rollouts = Rollouts(np.zeros((1, 4, 8), np.int32), LENGTHS[:1], np.zeros((1, 4, 8), np.float32), TRUNCATED[:1])
    problem = Problem(0, "q1", "How many?", None)
    texts = [["a \\boxed{5}", "b \\boxed{5}", "c \\boxed{7}", "d"]]
    rewards = np.array([[1, 1, 0, 0]], np.float32)
    [row] = generations([problem], texts, GROUPS[:1], [vote(GROUPS[0])], rollouts, rewards)
    assert (row["id"], row["question"], row["label"], row["counts"]) == ("q1", "How many?", "5", [2, 1])
    assert row["samples"][2] == {
        "response": "c \\boxed{7}", "answer": "7", "class": 1, "tokens": 3, "truncated": False, "reward": 0.0
    }  # fmt: skip
    assert row["samples"][3] == {
        "response": "d", "answer": None, "class": None, "tokens": 8, "truncated": True, "reward": 0.0
    }  # fmt: skip


def test_table_has_a_column_for_each_result_and_no_row_that_one_lacks():
    text = table({"before": {"avg@4": 0.25, "majority_ratio": 0.5}, "after": {"majority_ratio": 0.75}}, samples=4)
    lines = text.splitlines()
    assert lines[0].split() == ["before", "after"]
    assert lines[1].split() == ["majority_ratio", "0.500", "0.750"]
    assert len(lines) == 2
