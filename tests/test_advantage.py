"""Hand-worked: GRPO's advantage of small groups."""

import numpy as np
import pytest

from ttrl_jax.learn.advantage import group_normalised


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
