"""Hand-worked: the capital of a bet. Semantics: a worse model is hardly ever returned, a better one mostly is."""

import math

import numpy as np
import pytest

from ttrl_jax.measure.certificate import MOST_BET, capitals, certify, fewest, needed

HALF = {"eps": 0.05, "delta": 0.05}
DRAWS = 10_000


def test_two_bets_by_hand():
    """x = d + eps is 1.05 and -0.95. The first bet is 0. Then mu = 1.05 / 2 = 0.525, sigma2 = (0.25 + 0.525^2) / 2 =
    0.2628, and mu / (sigma2 + mu^2) = 0.525 / 0.5384 = 0.975, which is more than 0.95: K = 1 - 0.95 * 0.95."""
    assert capitals(np.array([1.0, -1.0]), eps=0.05) == pytest.approx([1, 1 - 0.95 * 0.95])
    # x = 0.05 twice: mu = 0.025, sigma2 = (0.25 + 0.025^2) / 2 = 0.1253125, the bet 0.025 / 0.1259375 = 0.198511.
    assert capitals(np.array([0.0, 0.0]), eps=0.05) == pytest.approx([1, 1 + 0.05 * 0.198511], abs=1e-7)
    # x = -0.25 and 0.25: after a loss nothing is bet.
    assert capitals(np.array([-0.25, 0.25]), eps=0.0).tolist() == [1, 1]


def test_a_steady_gain_passes_after_eight_canaries():
    """x = 0.65: mu = 0.325 and sigma2 = (0.25 + 0.325^2) / 2 = 0.1778 after the first, and 0.325 / 0.2834 is above
    0.95, as every later bet is. So K_j = 1.6175^(j - 1): 17.9 after 7 and 29.0 after 8 canaries; 20 are needed."""
    for count, accepted in ((7, False), (8, True), (16, True)):
        found = certify([0.6] * count, **HALF)
        assert found.capital == pytest.approx(1.6175 ** (count - 1)) and found.threshold == pytest.approx(20)
        assert (found.accepted, found.needed, found.mean_change) == (accepted, 8, pytest.approx(0.6))


def test_no_change_needs_more_canaries_than_one_has():
    """x = 0.05: a bet of 0.95 on each but the first gives 1.0475^(n - 1), which is 20 for n = 66 at the earliest."""
    assert math.log(20) / math.log(1.0475) > 64 and needed([0.0], **HALF) == 68
    assert not certify([0.0] * 64, **HALF).accepted and certify([0.0] * 68, **HALF).accepted
    assert needed([-0.05], **HALF) is None and needed([-0.3, 0.2], **HALF) is None


def test_what_was_won_stays_won():
    """The highest capital counts, wherever it was reached; the order matters, and is therefore drawn beforehand."""
    ahead = [0.6] * 8 + [-1.0] * 8
    found = certify(ahead, **HALF)
    assert found.accepted and found.capital == pytest.approx(1.6175**7) and found.needed == 8
    assert not certify(ahead[::-1], **HALF).accepted


def test_the_estimate_repeats_what_was_seen():
    assert certify([0.6] * 3, **HALF).needed == 8
    once = [0.5, 0.0, 0.0, 0.25]
    assert certify(once, **HALF).needed == needed(once * 50, **HALF)
    assert fewest(**HALF) == 6  # 1, then 1.9975 each: 1.9975^5 = 31.8, and 1.9975^4 = 15.9


@pytest.mark.parametrize("changes", [[], [1.5], [float("nan")], [[0.1]]])
def test_what_is_no_change_is_refused(changes):
    with pytest.raises(ValueError, match=r"in \[-1, 1\]"):
        certify(changes, **HALF)


def test_no_canary_takes_all():
    """Semantics: whatever comes after whatever, the capital stays above 0."""
    rng = np.random.default_rng(0)
    worst = rng.choice([-1.0, 1.0], size=(200, 64), p=[0.3, 0.7])
    for eps in (0.0, 0.05):
        steps = capitals(worst, eps=eps)
        ratios = steps[:, 1:] / steps[:, :-1]
        assert (steps > 0).all() and ratios.min() == pytest.approx(1 - MOST_BET * (1 - eps))


def _two_points(low: float, high: float, eps: float):
    """Draws of two values with the mean -eps."""
    chance = (-eps - low) / (high - low)
    return lambda rng, shape: np.where(rng.random(shape) < chance, high, low)


def _samples(eps: float, count: int):
    """Multiples of 1 / count: the accuracies of two models that differ by eps on questions of every difficulty."""

    def draw(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        before = eps + (1 - eps) * rng.beta(0.5, 0.5, shape)
        return (rng.binomial(count, before - eps) - rng.binomial(count, before)) / count

    return draw


NULLS = {
    "all or nothing": _two_points(-1, 1, 0.05),
    "rare disasters": _two_points(-1, 0.02, 0.05),
    "rarer disasters": _two_points(-0.5, 0.0, 0.05),
    "rare gains": _two_points(-0.1, 1, 0.05),
    "small": _two_points(-0.06, 0.06, 0.05),
    "samples": _samples(0.05, 16),
    "one sample": _samples(0.05, 1),
    "eps 0": _two_points(-1, 0.1, 0.0),
}


@pytest.mark.parametrize("name", NULLS)
@pytest.mark.parametrize("count", [16, 64, 128])
def test_a_worse_model_is_returned_at_most_as_often_as_promised(name: str, count: int):
    """10,000 sets of canaries on which the mean change is -eps, the best of what the promise is about."""
    eps = 0.0 if name == "eps 0" else 0.05
    changes = NULLS[name](np.random.default_rng(count), (DRAWS, count))
    assert changes.mean() == pytest.approx(-eps, abs=4 * changes.std() / math.sqrt(changes.size) + 1e-12)
    for delta in (0.05, 0.2):
        accepted = (capitals(changes, eps=eps).max(-1) >= 1 / delta).mean()
        assert accepted <= delta
        if name == "all or nothing" and count == 64 and delta == 0.2:
            assert accepted > 0.05  # so that the bound is not kept by never accepting anything


def test_a_better_model_is_mostly_returned():
    """Semantics: a gain of 0.2, of 16 responses each to 32 canaries."""
    rng = np.random.default_rng(0)
    before = 0.8 * rng.random((1000, 32))
    changes = (rng.binomial(16, before + 0.2) - rng.binomial(16, before)) / 16
    assert (capitals(changes, eps=0.05).max(-1) >= 20).mean() > 0.95
