"""Hand-worked: GRPO's advantages of small groups, for each token."""

import numpy as np
import pytest

from ttrl_jax.learn.credit import group_normalised, grpo
from ttrl_jax.reward.judge import Verdict


def test_one_positive_of_32():
    """mean 1/32; unbiased variance ((31/32)^2 + 31/32^2) / 31 = 1/32; A+ = (31/32) / (sqrt(1/32) + 1e-6)."""
    advantages = group_normalised(np.eye(1, 32, 4))
    assert advantages.shape == (1, 32) and advantages.dtype == np.float32
    assert advantages[0, 4] == pytest.approx(5.480047, rel=1e-6)
    np.testing.assert_allclose(np.delete(advantages[0], 4), -0.1767757, rtol=1e-6)


def test_each_group_is_normalised_by_itself():
    rewards = np.array([[1, 0, 1, 0], [0, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0]], np.float32)
    half = 0.5 / (np.sqrt(1 / 3) + 1e-6)  # 0.866024
    want = [
        [half, -half, half, -half],
        [-0.499999, -0.499999, -0.499999, 1.499997],  # mean 1/4, variance (3/16 + 9/16) / 3 = 1/4
        [0, 0, 0, 0],
        [0, 0, 0, 0],
    ]
    advantages = group_normalised(rewards)
    np.testing.assert_allclose(advantages, want, rtol=1e-6)
    np.testing.assert_array_equal(advantages[2:], 0)
    np.testing.assert_array_equal(group_normalised(rewards[[1, 0]]), advantages[[1, 0]])


@pytest.mark.parametrize("size", [2, 3, 7, 31, 32, 33])
def test_a_unanimous_group_carries_exactly_no_signal(size):
    np.testing.assert_array_equal(group_normalised(np.ones((2, size))), 0)


@pytest.mark.parametrize("reward", [1 / 3, 0.1, 1.1, 7 / 64])
@pytest.mark.parametrize("size", [2, 3, 7, 31, 32, 33, 48])
def test_nor_does_a_group_of_equal_rewards_that_no_float_holds_exactly(size, reward):
    np.testing.assert_array_equal(group_normalised(np.full((2, size), reward, np.float32)), 0)


def test_a_group_of_one_keeps_its_reward():
    np.testing.assert_allclose(group_normalised(np.array([[1.0], [0.0]])), [[0.999999], [0.0]], rtol=1e-6)


def verdict(rewards, *, scale, bonus):
    return Verdict([0, 0], [0, 0], *map(np.float32, (rewards, scale, bonus)))


def test_every_token_of_a_response_has_its_advantage():
    """Two questions, two responses each, of 2, 1, 3 and 1 tokens; (1 - 1/2) / (sqrt(1/2) + 1e-6) = 0.7071058."""
    mask = np.float32([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 0, 0]])
    advantages, found = grpo(verdict([[1, 0], [1, 1]], scale=[1, 1], bonus=[[0, 0], [0, 0]]), mask)
    a = 0.7071058
    np.testing.assert_allclose(advantages, [[a, a, 0], [-a, 0, 0], [0, 0, 0], [0, 0, 0]], rtol=1e-6)
    assert advantages.dtype == np.float32
    assert found == pytest.approx({"mean": 0.0, "max": a, "min": -a})


def test_a_scale_and_a_bonus():
    """Half of what the first question teaches; nothing of the second, whose bonus stays."""
    mask = np.ones((4, 2), np.float32)
    advantages, found = grpo(verdict([[1, 0], [0, 1]], scale=[0.5, 0], bonus=[[0, 0.25], [0.5, 0]]), mask)
    a = 0.7071058 / 2
    np.testing.assert_allclose(advantages, [[a] * 2, [0.25 - a] * 2, [0.5] * 2, [0] * 2], rtol=1e-6)
    assert found == pytest.approx({"mean": 0.75 / 4, "max": 0.5, "min": 0.25 - a})
