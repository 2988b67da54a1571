"""Hand-worked: each side of each clip, k3, and what is summed; and a second witness, TRL's formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ttrl_jax.learn.loss import kl_k3, policy_loss, process_sums, token_sums, value_sums

CLIPS = dict(clip_low=0.2, clip_high=0.28, dual_clip=3.0)

# advantage, ratio, loss, d loss / d logp, clipped, dual-clipped
CASES = [
    (1.0, 1.0, -1.0, -1.0, False, False),
    (1.0, 1.27, -1.27, -1.27, False, False),
    (1.0, 1.5, -1.28, 0.0, True, False),  # at the upper bound
    (1.0, 0.5, -0.5, -0.5, False, False),  # the lower bound does not hold back what got too unlikely
    (2.0, 9.0, -2.56, 0.0, True, False),
    (-1.0, 1.0, 1.0, 1.0, False, False),
    (-1.0, 0.81, 0.81, 0.81, False, False),
    (-1.0, 0.5, 0.8, 0.0, True, False),  # at the lower bound
    (-1.0, 1.5, 1.5, 1.5, False, False),
    (-1.0, 4.0, 3.0, 0.0, False, True),  # at the dual clip
    (-2.0, 4.0, 6.0, 0.0, False, True),
    (0.0, 5.0, 0.0, 0.0, False, False),
]


@pytest.mark.parametrize(("advantage", "ratio", "loss", "slope", "clipped", "dual_clipped"), CASES)
def test_policy_loss_by_hand(advantage, ratio, loss, slope, clipped, dual_clipped):
    old = jnp.full((1, 1), -2.5)

    def run(logps):
        per_token, seen = policy_loss(logps, old, jnp.full((1, 1), advantage), **CLIPS)
        return per_token.sum(), seen

    (value, seen), grad = jax.value_and_grad(run, has_aux=True)(old + np.log(ratio))
    assert float(value) == pytest.approx(loss, rel=1e-5, abs=1e-7)
    assert float(grad.squeeze()) == pytest.approx(slope, rel=1e-5, abs=1e-7)
    assert float(seen["ratio"].squeeze()) == pytest.approx(ratio, rel=1e-5)
    assert (bool(seen["clipped"].squeeze()), bool(seen["dual_clipped"].squeeze())) == (clipped, dual_clipped)


def test_absurd_ratios_stay_finite():
    logps, old = jnp.array([[0.0, -200.0]]), jnp.array([[-200.0, 0.0]])
    loss, seen = policy_loss(logps, old, jnp.array([[-1.0]]), **CLIPS)
    np.testing.assert_allclose(seen["ratio"], [[np.exp(20), np.exp(-20)]], rtol=1e-5)
    np.testing.assert_allclose(loss, [[3.0, 0.8]], rtol=1e-6)
    assert np.isfinite(kl_k3(logps, old)).all()


def test_k3_by_hand():
    """exp(d) - d - 1 with d = reference - policy: 2 - ln 2 - 1, 1/2 + ln 2 - 1, 0, and no more than 10."""
    d = jnp.log(jnp.array([[2.0, 0.5, 1.0, 20.0]]))
    np.testing.assert_allclose(kl_k3(-d, jnp.zeros_like(d)), [[0.306853, 0.193147, 0.0, 10.0]], atol=1e-6)
    slopes = jax.grad(lambda logps: kl_k3(logps, jnp.zeros_like(d)).sum())(-d)
    np.testing.assert_allclose(slopes, [[-1.0, 0.5, 0.0, 0.0]], atol=1e-6)  # 1 - exp(d)


def test_sums_by_hand():
    """Two rows of three tokens, of which 2 and 1 count. Ratios 1.5 (clipped) and 1 where A = 1, 4 where A = -1."""
    nonsense = 7.0  # beyond the mask
    old = jnp.array([[-1.0, -2.0, nonsense], [-3.0, nonsense, nonsense]])
    logps = old + jnp.log(jnp.array([[1.5, 1.0, 99.0], [4.0, 99.0, 99.0]]))
    reference = logps + jnp.log(jnp.array([[2.0, 1.0, 99.0], [0.5, 99.0, 99.0]]))
    entropies = jnp.array([[0.5, 0.25, nonsense], [1.0, nonsense, nonsense]])
    mask = jnp.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    numbers = {"old": old, "reference": reference, "advantages": jnp.array([[1.0] * 3, [-1.0] * 3])}
    numbers["sampler_logps"] = old + jnp.array([[0.5, -0.25, nonsense], [0.0, nonsense, nonsense]])
    total, sums = token_sums(logps, entropies, numbers, mask, kl_coef=0.1, entropy_coef=0.01, **CLIPS)
    want = {
        "policy_loss": -1.28 - 1.0 + 3.0,
        "entropy": 1.75,
        "kl": 0.306853 + 0.193147,
        "clip_fraction": 1.0,
        "dual_clip_fraction": 1.0,
        "approx_kl": -np.log(1.5) - np.log(4.0),
        "ratio_max": 4.0,
        "logp_gap": 0.75,
        "loss": 0.72 + 0.1 * 0.5 - 0.01 * 1.75,
    }
    assert sums.keys() == want.keys()
    for name, value in want.items():
        assert float(sums[name]) == pytest.approx(value, rel=1e-5), name
    assert float(total) == float(sums["loss"])
    del numbers["reference"]
    without, sums = token_sums(logps, entropies, numbers, mask, kl_coef=0, entropy_coef=0, **CLIPS)
    assert float(without) == pytest.approx(0.72, rel=1e-5) and "kl" not in sums


def trl_loss(logps, old, reference, advantages, mask, *, epsilon_low, epsilon_high, delta, beta):
    """GRPOTrainer._compute_loss with loss_type="dapo", importance_sampling_level="token": the mean over all tokens."""
    coef_1 = np.exp(logps - old)
    coef_2 = np.clip(coef_1, 1 - epsilon_low, 1 + epsilon_high)
    coef_1 = np.minimum(coef_1, delta)
    per_token_loss = -np.minimum(coef_1 * advantages[:, None], coef_2 * advantages[:, None])
    per_token_kl = np.exp(reference - logps) - (reference - logps) - 1
    return ((per_token_loss + beta * per_token_kl) * mask).sum() / mask.sum()


def test_the_token_mean_is_trls():
    rng = np.random.default_rng(0)
    shape = (12, 30)
    old = -rng.exponential(size=shape)
    logps = old + 1.5 * rng.normal(size=shape)
    reference = logps + 0.5 * rng.normal(size=shape)
    mask = (np.arange(30) < rng.integers(1, 31, size=12)[:, None]).astype(float)
    advantages = np.tile([1.2, -0.7], 6)
    numbers = {"old": old, "reference": reference, "advantages": np.tile(advantages[:, None], 30), "sampler_logps": old}
    numbers = {name: np.float32(x) for name, x in numbers.items()}
    arrays = (np.float32(logps), np.zeros(shape, np.float32), numbers, np.float32(mask))
    total, sums = token_sums(*arrays, kl_coef=0.05, entropy_coef=0.0, **CLIPS)
    want = trl_loss(logps, old, reference, advantages, mask, epsilon_low=0.2, epsilon_high=0.28, delta=3.0, beta=0.05)
    assert float(total) / mask.sum() == pytest.approx(want, rel=1e-5)
    assert float(sums["clip_fraction"]) > 3 and float(sums["dual_clip_fraction"]) > 0  # all branches were there


def test_value_loss_by_hand():
    """Half the larger of two squares, clip 0.5, old value 1: (value, return) = (2, 0): 4 against 1.5^2; (2, 3): 1
    against 1.5^2, which decides; (1.2, 1): 0.04, not moved as far; and one beyond the mask."""
    values, returns = jnp.array([[2.0, 2.0, 1.2, 9.0]]), jnp.array([[0.0, 3.0, 1.0, 0.0]])
    numbers, mask = {"old": jnp.ones((1, 4)), "returns": returns}, jnp.array([[1.0, 1.0, 1.0, 0.0]])

    def loss(values):
        return value_sums(values, jnp.zeros_like(values), numbers, mask, clip=0.5)

    (total, sums), slope = jax.value_and_grad(loss, has_aux=True)(values)
    assert float(total) == float(sums["loss"]) == pytest.approx(0.5 * (4 + 2.25 + 0.04), rel=1e-6)
    assert float(sums["clip_fraction"]) == 1
    np.testing.assert_allclose(slope, [[2.0, 0.0, 0.2, 0.0]], atol=1e-6)  # what is clipped does not pull back


def trl_value_loss(vpred, values, returns, mask, cliprange):
    """PPOTrainer's: 0.5 * masked_mean(max of two squares)."""
    clipped = np.clip(vpred, values - cliprange, values + cliprange)
    return 0.5 * (np.maximum((vpred - returns) ** 2, (clipped - returns) ** 2) * mask).sum() / mask.sum()


def test_the_value_loss_is_trls():
    rng = np.random.default_rng(1)
    old, values, returns = (rng.normal(size=(12, 30)).astype(np.float32) for _ in range(3))
    mask = (np.arange(30) < rng.integers(1, 31, size=12)[:, None]).astype(np.float32)
    total, sums = value_sums(values, values, {"old": old, "returns": returns}, mask, clip=0.2)
    assert float(total) / mask.sum() == pytest.approx(trl_value_loss(values, old, returns, mask, 0.2), rel=1e-5)
    assert 0 < float(sums["clip_fraction"]) < mask.sum()


def test_process_loss_by_hand():
    """Three rows, two of them here, of 2 and 3 tokens in chunks of 3: beta 0.5, sums of log-ratios 2 and -1.
    -log sigmoid(1) where the outcome is 1, and -log(1 - sigmoid(-0.5)) where it is 0."""
    ratios = jnp.array([[[0.5, 1.5, -1.0], [1.0, -1.0, 7.0]]])  # of row 0 two, of row 2 three, and none
    row = jnp.array([[[0.0, 0.0, 2.0], [2.0, 2.0, 0.0]]])
    outcome = jnp.array([[[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]])
    mask = jnp.array([[[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]]])
    reference = jnp.full(ratios.shape, -3.0)

    def loss(logps):
        numbers = {"row": row, "outcome": outcome, "reference": reference}
        return process_sums(logps, jnp.zeros_like(logps), numbers, mask, beta=0.5, rows=3)

    (total, sums), slope = jax.value_and_grad(loss, has_aux=True)(reference + ratios)
    assert float(total) == pytest.approx(np.log(1 + np.exp(-1.0)) + np.log(1 + np.exp(-0.5)), rel=1e-6)
    assert float(sums["accuracy"]) == 2
    up, down = -0.5 / (1 + np.exp(1.0)), 0.5 / (1 + np.exp(0.5))  # beta (sigmoid - outcome)
    np.testing.assert_allclose(slope, [[[up, up, down], [down, down, 0.0]]], rtol=1e-5)
