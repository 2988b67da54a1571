"""Hand-worked: advantages of small groups and short responses, for each token, by every algorithm."""

import math

import numpy as np
import pytest

from ttrl_jax.learn import credit
from ttrl_jax.learn.credit import centred, entropic, gae, group_normalised, leave_one_out, of_groups, ppo, whitened
from ttrl_jax.reward.judge import Verdict


def verdict(rewards, *, scale=None, bonus=None):
    rewards = np.float32(rewards)
    scale = np.ones(len(rewards)) if scale is None else scale
    bonus = np.zeros(rewards.shape) if bonus is None else bonus
    return Verdict([0] * len(rewards), [0] * len(rewards), rewards, np.float32(scale), np.float32(bonus))


# ---------------------------------------------------------------------- one number for a response


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


RULES = [group_normalised, centred, leave_one_out, entropic]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("reward", [1, 1 / 3, 0.1, 1.1, 7 / 64])
@pytest.mark.parametrize("size", [2, 3, 7, 31, 32, 33, 48])
def test_equal_rewards_carry_exactly_no_signal(rule, size, reward):
    """Also those that no float holds exactly."""
    np.testing.assert_array_equal(rule(np.full((2, size), reward, np.float32)), 0)


def test_a_group_of_one_keeps_its_reward():
    np.testing.assert_allclose(group_normalised(np.array([[1.0], [0.0]])), [[0.999999], [0.0]], rtol=1e-6)
    for rule in (centred, leave_one_out):
        assert rule(np.float32([[1.0], [0.0]])).tolist() == [[1.0], [0.0]]
    assert entropic(np.float32([[1.0], [0.0]])).tolist() == [[0.0], [0.0]]


def test_dr_grpo_and_rloo_by_hand():
    """Of 1, 0, 0, 1: less the mean, 1/2; less the mean of the others, 1/3 and 2/3."""
    rewards = np.float32([[1, 0, 0, 1], [0, 0, 1, 0]])
    np.testing.assert_allclose(centred(rewards), [[0.5, -0.5, -0.5, 0.5], [-0.25, -0.25, 0.75, -0.25]])
    want = [[2 / 3, -2 / 3, -2 / 3, 2 / 3], [-1 / 3, -1 / 3, 1, -1 / 3]]
    np.testing.assert_allclose(leave_one_out(rewards), want, rtol=1e-6)
    others = [[r - np.delete(row, i).mean() for i, r in enumerate(row)] for row in rewards]
    np.testing.assert_allclose(leave_one_out(rewards), others, rtol=1e-6)


@pytest.mark.parametrize(
    ("ones", "right", "wrong"),
    [(1, 18.6, -0.37), (8, 2.50, -0.75), (16, 1.07, -1.00), (24, 0.35, -1.00), (31, 0.03, -1.00)],
)
def test_entropic_advantages_of_32(ones, right, wrong):
    """With c ones of 32; with half of them or more no beta has a KL of ln 2, and zeros are pushed as far as -1."""
    [advantages] = entropic(np.float32([[1] * ones + [0] * (32 - ones)]))
    assert advantages[0] == pytest.approx(right, abs=0.05) and advantages[-1] == pytest.approx(wrong, abs=0.006)
    assert len(set(advantages.tolist())) == 2


def test_the_entropic_beta_by_hand():
    """One of four: with e^-beta = x, the shares are 1 / (1 + 3x) and x / (1 + 3x), and their KL from 1/4 is ln 2."""
    [advantages] = entropic(np.float32([[1, 0, 0, 0]]))
    x = 1 / (advantages[0] + 1)  # A+ = 1 / x - 1
    shares = np.array([1, x, x, x]) / (1 + 3 * x)
    assert (shares * np.log(4 * shares)).sum() == pytest.approx(math.log(2), rel=1e-5)
    np.testing.assert_allclose(advantages[1:], x / ((1 + 2 * x) / 3) - 1, rtol=1e-5)


def test_every_token_of_a_response_has_its_advantage():
    """Two questions, two responses each, of 2, 1, 3 and 1 tokens; (1 - 1/2) / (sqrt(1/2) + 1e-6) = 0.7071058."""
    mask = np.float32([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 0, 0]])
    advantages, found = of_groups(verdict([[1, 0], [1, 1]]), mask, group_normalised)
    a = 0.7071058
    np.testing.assert_allclose(advantages, [[a, a, 0], [-a, 0, 0], [0, 0, 0], [0, 0, 0]], rtol=1e-6)
    assert advantages.dtype == np.float32
    assert found == pytest.approx({"mean": 0.0, "max": a, "min": -a})


def test_a_scale_and_a_bonus():
    """Half of what the first question teaches, and a quarter of the mean |A|, a, besides; nothing of the second."""
    mask = np.ones((4, 2), np.float32)
    given = verdict([[1, 0], [0, 1]], scale=[0.5, 0], bonus=[[0, 0.25], [0.5, 0]])
    advantages, found = of_groups(given, mask, group_normalised)
    a = 0.7071058 / 2
    np.testing.assert_allclose(advantages, [[a] * 2, [0.25 * a - a] * 2, [0] * 2, [0] * 2], rtol=1e-6)
    assert found == pytest.approx({"mean": 0.25 * a / 4, "max": a, "min": -0.75 * a})


@pytest.mark.parametrize("rule", RULES)
def test_a_bonus_is_a_share_of_what_the_question_teaches(rule):
    """Whatever the algorithm's units; where all rewards are equal there is nothing to take a share of."""
    rewards, bonus = np.float32([[1, 0, 0, 1], [1, 1, 1, 1]]), [[0, 0.5, 0, 0], [0, 0.5, 0, 0]]
    [first, second] = of_groups(verdict(rewards, bonus=bonus), np.ones((8, 1), np.float32), rule)[0].reshape(2, 4)
    plain = rule(rewards)[0]
    np.testing.assert_allclose(first - plain, [0, 0.5 * np.abs(plain).mean(), 0, 0], atol=1e-6)
    assert not second.any()


def by_tokens(given, mask, values):
    """Advantages by PPO and by PRIME, whose process model is still the start."""
    how = {"beta": 1.0, "outcome_coef": 1.0, "process_coef": 1.0}
    return ppo(given, mask, values, gamma=1.0, lam=1.0)[0], credit.prime(given, mask, np.zeros(mask.shape), **how)[0]


def test_a_scale_and_a_bonus_of_tokens():
    """Rewards 1, 0 | 0, 0, 1; 2 and 1 | 1, 1 and 1 tokens, all values 0. With a scale of 0, the second does not count
    when the first is whitened: 1, 1, 0 have the mean 2/3 and the variance (1/9 + 1/9 + 4/9) / 2 = 1/3, so A is
    sqrt(1/3), sqrt(1/3), -2 sqrt(1/3). PRIME's outcomes 1 and -1 have the mean 1/3 and the variance 4/3: the same A.
    The mean |A| over the three tokens is 4/3 sqrt(1/3)."""
    mask, a = np.float32([[1, 1], [1, 0], [1, 0], [1, 0]]), math.sqrt(1 / 3)
    scaled = verdict([[1, 0], [0, 1]], scale=[1, 0])
    added = verdict([[1, 0], [0, 1]], scale=[1, 0], bonus=[[0, 0.75], [0.75, 0]])
    halved = verdict([[1, 0], [0, 1]], scale=[0.5, 0], bonus=[[0, 0.75], [0.75, 0]])
    for given, factor, last in ((scaled, 1, -2 * a), (added, 1, -a), (halved, 0.5, -a)):
        for advantages in by_tokens(given, mask, np.zeros((4, 2), np.float32)):
            want = np.float32([[a, a], [last, 0], [0, 0], [0, 0]]) * factor
            np.testing.assert_allclose(advantages, want, atol=1e-5)


def test_where_nothing_is_taught_nothing_is_learned():
    """By the critic either: what it is to return is what it says already."""
    mask, values = np.float32([[1, 1], [1, 0], [1, 1], [1, 1]]), np.float32([[1, 2], [3, 9], [4, 5], [6, 7]])
    for scale, taught in (([0, 0], [[1, 2], [3, 0], [4, 5], [6, 7]]), ([0, 0.1], [[1, 2], [3, 0], [0, 0], [1, 1]])):
        given = verdict([[1, 0], [0, 1]], scale=scale)
        _, returns, found = ppo(given, mask, values, gamma=1.0, lam=1.0)
        assert returns.tolist() == taught and found["critic"]["return"] == pytest.approx(4 / 7)
        for advantages in by_tokens(given, mask, values):
            assert not advantages[:2].any() and advantages[2:].any() == (scale[1] > 0)


# ---------------------------------------------------------------------- PPO

MASK = np.float32([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]])


def test_gae_by_hand():
    """gamma 1/2, lambda 1/2. Values 0.4, 0.2, 0.6; the reward 1 comes last:
    delta_2 = 1 - 0.6 = 0.4; delta_1 = 0.3 - 0.2 = 0.1, A_1 = 0.1 + 0.4 / 4 = 0.2; delta_0 = 0.1 - 0.4, A_0 = -0.25."""
    rewards, values = np.float32([[0, 0, 1], [0, 1, 9]]), np.float32([[0.4, 0.2, 0.6], [0.5, 0.1, 9]])
    found = gae(rewards, values, MASK[:2], gamma=0.5, lam=0.5)
    # The second has two tokens: A_1 = 1 - 0.1 = 0.9, A_0 = 0.05 - 0.5 + 0.9 / 4.
    np.testing.assert_allclose(found, [[-0.25, 0.2, 0.4], [-0.225, 0.9, 0]], atol=1e-6)


def test_with_lambda_1_the_advantage_is_the_reward_less_the_value():
    rng = np.random.default_rng(0)
    values = (rng.normal(size=MASK.shape) * MASK).astype(np.float32)
    rewards = np.float32([[1, 0], [1, 1]])
    advantages, returns, found = ppo(verdict(rewards), MASK, values, gamma=1.0, lam=1.0)
    outcome = rewards.reshape(-1, 1) * MASK
    np.testing.assert_allclose(returns, outcome, atol=1e-6)
    np.testing.assert_allclose(advantages, whitened(outcome - values, MASK), atol=1e-5)
    assert advantages.dtype == returns.dtype == np.float32
    tokens = MASK > 0
    assert found["critic"]["value"] == pytest.approx(values[tokens].mean(), rel=1e-5)
    assert found["critic"]["return"] == pytest.approx(7 / 9)
    explained = 1 - np.var((outcome - values)[tokens]) / np.var(outcome[tokens])
    assert found["critic"]["explained_variance"] == pytest.approx(explained, rel=1e-5)
    unanimous = ppo(verdict(np.ones((2, 2))), MASK, values, gamma=1.0, lam=1.0)[2]
    assert unanimous["critic"]["explained_variance"] == 0.0


def test_whitening_by_hand():
    """Of 1, 2, 3, 6: mean 3, unbiased variance (4 + 1 + 0 + 9) / 3."""
    mask = np.float32([[1, 1, 0], [1, 1, 0]])
    x, deviation = np.float32([[1, 2, 50], [3, 6, 50]]), math.sqrt(14 / 3)
    np.testing.assert_allclose(whitened(x, mask), np.float32([[-2, -1, 0], [0, 3, 0]]) / deviation, rtol=1e-6)
    assert whitened(np.float32([[4.0]]), np.float32([[1.0]])).tolist() == [[0.0]]


# ---------------------------------------------------------------------- PRIME


def test_prime_by_hand():
    """One question, two responses of 3 and 2 tokens, beta 1/2; coefficients 2 (outcome) and 1 (process)."""
    mask = np.float32([[1, 1, 1], [1, 1, 0]])
    log_ratios = np.float32([[0.4, -0.8, 9], [1.2, 9, 9]])
    # Times beta, the last token's 0: 0.2, -0.4, 0 and 0.6, 0. Sums to the end: -0.2, -0.4, 0 and 0.6, 0: the largest is
    # 0.6. Divided by it: 1/3, -2/3, 0 and 1, 0, with means -1/9 and 1/2.
    mean = -1 / 9 + 1 / 2
    process = [[2 / 3 - mean, -4 / 3 - mean, -mean], [2 - mean, -mean, 0]]  # times 2, less both means
    outcome = [[0, 0, 1], [0, -1, 0]]
    rewards = np.array(process) + 2 * np.array(outcome)
    to_the_end = np.array(
        [[rewards[0].sum(), rewards[0, 1:].sum(), rewards[0, 2]], [rewards[1].sum(), rewards[1, 1], 0]]
    )
    advantages, found = credit.prime(verdict([[1, 0]]), mask, log_ratios, beta=0.5, outcome_coef=2.0, process_coef=1.0)
    np.testing.assert_allclose(advantages, whitened(to_the_end, mask), atol=1e-4)  # 1e-6 is added to the largest
    assert found["process"]["ordered_pairs"] == 0.0  # 0.4 - 0.8 + 9 is less than 1.2 + 9
    assert found["process"]["log_ratio"] == pytest.approx((0.4 - 0.8 + 9 + 1.2 + 9) / 5)


def test_prime_without_a_process_is_rloo_of_the_outcome_whitened():
    rewards, rng = np.float32([[1, 0, 0], [1, 1, 0]]), np.random.default_rng(0)
    mask = (np.arange(5) < rng.integers(1, 6, size=6)[:, None]).astype(np.float32)
    log_ratios = rng.normal(size=mask.shape)
    found, _ = credit.prime(verdict(rewards), mask, log_ratios, beta=0.1, outcome_coef=5.0, process_coef=0.0)
    np.testing.assert_allclose(found, whitened(leave_one_out(rewards).reshape(-1, 1) * mask, mask), atol=1e-5)


def test_a_process_model_that_is_still_the_start_gives_nothing():
    """All log-ratios are 0: no division by nothing."""
    mask = np.ones((4, 3), np.float32)
    for rewards in (np.eye(2), np.ones((2, 2))):
        found, _ = credit.prime(verdict(rewards), mask, np.zeros((4, 3)), beta=0.05, outcome_coef=5.0, process_coef=5.0)
        assert np.isfinite(found).all()
        np.testing.assert_allclose(
            found, whitened(leave_one_out(np.float32(rewards)).reshape(-1, 1) * mask, mask), atol=1e-5
        )


def test_pairs_in_the_right_order():
    """Of the first question two pairs: one right, one equal; of the second none; of the third one, wrong."""
    scores, rewards = np.array([[3, 1, 3], [1, 2, 3], [0, 1, 5]]), np.array([[1, 0, 0], [1, 1, 1], [1, 1, 0]])
    assert credit.ordered_pairs(scores, rewards) == (1 + 0.5 + 0 + 0) / 4
    assert credit.ordered_pairs(scores[1:2], rewards[1:2]) == 0.5
