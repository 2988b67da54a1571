"""A bound on how often a worse model is returned: bets on canaries, questions that a run never trains on.

The start model and the trained one answer each canary as often, with the same random numbers; d is the change of its
accuracy. A gambler who begins with 1 bets before each canary that d is above -eps:

    K_0 = 1,   K_j = K_{j-1} (1 + lambda_j (d_j + eps))

lambda_j depends on the canaries before j alone, and 0 <= lambda_j <= MOST_BET. As d + eps >= -1 + eps, no factor is
below 1 - MOST_BET (1 - eps), which is above 0. If the mean of d is -eps or less, a factor has a mean of at most 1,
whatever came before. So K is a supermartingale that is never negative, and by Ville's inequality it ever reaches
1/delta with a chance of at most delta. The trained model is returned where it does. Bets on means: arXiv 2010.09686.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOST_BET = 0.95  # of the capital, for a gain of 1; at 1 / (1 - eps) one bad canary would take all of it
_MOST_NEEDED = 10_000  # canaries; beyond them the estimate says nothing


@dataclass(frozen=True)
class Certificate:
    """What the canaries say of a trained model."""

    accepted: bool  # whether the trained model is returned, and not the start
    capital: float  # the highest of all K_j
    threshold: float  # 1 / delta
    mean_change: float  # of the accuracy of a canary
    needed: int | None  # canaries after which the bet is won; an estimate where it is not; None: no number would do


def capitals(changes: np.ndarray, *, eps: float) -> np.ndarray:
    """K_1 ... K_n along the last axis; changes float [..., n], each in [-1, 1], in the order of the bets.

    lambda_j = mu / (sigma2 + mu^2), between 0 and MOST_BET, with mu and sigma2 after j - 1 canaries. It is about the
    bet by which the capital grows fastest if these are the mean and the variance of x = d + eps. After j canaries,
    mu_j = sum x_i / (j + 1) and sigma2_j = (1/4 + sum (x_i - mu_i)^2) / (j + 1), so that the first bet is 0.
    """
    x = np.asarray(changes, np.float64) + eps
    counts = np.arange(2, x.shape[-1] + 2)
    mu = np.cumsum(x, -1) / counts
    sigma2 = (0.25 + np.cumsum((x - mu) ** 2, -1)) / counts
    bets = np.clip(mu / (sigma2 + mu**2), 0, MOST_BET)
    before = np.concatenate([np.zeros_like(bets[..., :1]), bets[..., :-1]], -1)
    with np.errstate(over="ignore"):  # what is infinite has passed long before
        return np.cumprod(1 + before * x, -1)


def certify(changes: Sequence[float], *, eps: float, delta: float) -> Certificate:
    """Judge a trained model by the change of each canary's accuracy, in the order in which the canaries were drawn.

    eps: how much worse, in the mean over all such questions, a model may be. delta: the chance that a model which is
    worse than that is returned. The changes must not have been looked at before. Raises ValueError for no changes, or
    changes that are not in [-1, 1].
    """
    d = np.asarray(changes, np.float64)
    if d.ndim != 1 or not d.size or not (np.abs(d) <= 1).all():
        raise ValueError(f"changes must be at least one number, each in [-1, 1], got {changes}")
    highest = float(capitals(d, eps=eps).max())
    accepted = highest >= 1 / delta
    return Certificate(accepted, highest, 1 / delta, float(d.mean()), needed(d, eps=eps, delta=delta))


def needed(changes: Sequence[float], *, eps: float, delta: float) -> int | None:
    """After how many canaries the bet is won if these changes come again and again, in their order. Where it is won by
    them alone, that is no estimate. None if it is not won by 10,000 canaries."""
    d = np.asarray(changes, np.float64)
    again = np.tile(d, math.ceil(_MOST_NEEDED / d.size))[:_MOST_NEEDED]
    won = np.flatnonzero(capitals(again, eps=eps) >= 1 / delta)
    return int(won[0]) + 1 if won.size else None


def fewest(*, eps: float, delta: float) -> int:
    """How many canaries it takes at least: where each of them was always wrong before, and always right afterwards."""
    return next(n for n in itertools.count(1) if capitals(np.ones(n), eps=eps)[-1] >= 1 / delta)
