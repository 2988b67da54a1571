"""How rewards become advantages: pure functions on the host, one for each algorithm. Rewards keep the group axis,
[P, G]; advantages, values and returns are per token, [R, T'], R = P * G, in the order of the rows.

All functions take the same two arguments. mask is float32 [R, T'], 1 on response tokens. verdict is the verdict on the
samples that are trained on: rewards and bonus float32 [P, G], scale float32 [P]. With a scale of 0 a question teaches
nothing, but its tokens still count in the means of the loss. The bonus is added at the end, in units of the question's
mean absolute advantage: so it is a share of what the question teaches anyway, whatever the algorithm.
"""

import math
from collections.abc import Callable

import numpy as np

from ttrl_jax.reward.judge import Verdict

EPSILON = 1e-6
_WHITE = 1e-8  # verl/utils/torch_functional.py, masked_whiten
_NONE = 1e-10  # a variance that is rounding alone
_FAR = 1e6  # the entropic advantage's largest beta

Credited = tuple[np.ndarray, dict[str, float]]  # advantages float32 [R, T'], 0 where there is no token; their spread


def of_groups(verdict: Verdict, mask: np.ndarray, rule: Callable[[np.ndarray], np.ndarray]) -> Credited:
    """Advantages A + bonus * mean |A| over the responses to the question, A = scale * rule(rewards), the same for all
    tokens of a response, and their mean, max and min over responses. The rule of GRPO is `group_normalised` or
    `entropic`, that of Dr. GRPO `centred`, that of RLOO `leave_one_out`."""
    groups = verdict.scale[:, None] * rule(verdict.rewards)
    groups = groups + verdict.bonus * np.abs(groups).mean(1, keepdims=True)
    return groups.reshape(-1, 1) * mask, _spread(groups)


def group_normalised(rewards: np.ndarray) -> np.ndarray:
    """GRPO's advantage (arXiv 2402.03300, section 4.1.1): each reward against its own group.

    rewards float32 [P, G] -> float32 [P, G], (r - mean) / (std + 1e-6) with the unbiased std, as verl computes it
    (core_algos.compute_grpo_outcome_advantage). A group of one keeps its reward (mean 0, std 1 there). A unanimous
    group gets zeros.
    """
    rewards = np.asarray(rewards, np.float32)
    if rewards.shape[1] == 1:
        return rewards / np.float32(1 + EPSILON)
    return centred(rewards) / (rewards.std(1, ddof=1, keepdims=True) + np.float32(EPSILON))


def centred(rewards: np.ndarray) -> np.ndarray:
    """Dr. GRPO's advantage (arXiv 2503.20783, section 3.2): float32 [P, G] -> r - mean. One alone keeps its reward."""
    rewards = np.asarray(rewards, np.float32)
    if rewards.shape[1] == 1:
        return rewards
    # In float64 the mean of equal rewards is exactly theirs. One off by a last digit would be divided by no more than
    # 1e-6, and push.
    return rewards - rewards.mean(1, keepdims=True, dtype=np.float64).astype(np.float32)


def leave_one_out(rewards: np.ndarray) -> np.ndarray:
    """RLOO's advantage (arXiv 2402.14740, equation 7): each reward less the mean of the others', float32 [P, G].

    That is n / (n - 1) times `centred`. A group of one keeps its reward.
    """
    n = rewards.shape[1]
    return centred(rewards) * np.float32(n / max(1, n - 1))


def entropic(rewards: np.ndarray) -> np.ndarray:
    """The entropic advantage of TTT-Discover (arXiv 2601.16175): float32 [P, G] -> e_i / mean of the others' e - 1.

    e_i = exp(beta (r_i - max r)). beta >= 0 is chosen so that KL(softmax(beta r) || uniform) is ln 2. It is found by
    doubling and bisection, and is at most 1e6, also where no beta reaches ln 2. A unanimous group, and a group of one,
    get zeros.
    """
    return np.stack([_entropic(group) for group in np.asarray(rewards, np.float64)]).astype(np.float32)


def _entropic(rewards: np.ndarray) -> np.ndarray:
    n, below = len(rewards), rewards - rewards.max()
    if n == 1 or not below.any():
        return np.zeros(n)

    def kl(beta: float) -> float:
        weights = np.exp(beta * below)
        shares = weights / weights.sum()
        return float((shares * np.log(np.where(shares > 0, shares * n, 1))).sum())

    low, high = 0.0, 1.0
    while kl(high) < math.log(2) and high < _FAR:
        low, high = high, min(2 * high, _FAR)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if kl(middle) < math.log(2) else (low, middle)
    weights = np.exp(high * below)
    return weights / ((weights.sum() - weights) / (n - 1) + 1e-12) - 1


def ppo(
    verdict: Verdict, mask: np.ndarray, values: np.ndarray, *, gamma: float, lam: float
) -> tuple[np.ndarray, np.ndarray, dict[str, dict[str, float]]]:
    """Generalised advantages (arXiv 1506.02438), whitened over all tokens, and the returns that the critic learns.

    values: float32 [R, T'], of the critic before its update. The reward comes with the last token (verl 0.4.1,
    core_algos.compute_gae_advantage_return). Returns advantages and returns, float32 [R, T'], 0 where there is no
    token, and metrics of the advantages and of the critic. For a question with a scale of 0 the returns are the values:
    the critic learns nothing of it either.
    """
    rewards = verdict.rewards.reshape(-1, 1) * _last(mask)
    raw = gae(rewards, values, mask, gamma=gamma, lam=lam)
    returns = (raw + values) * mask
    advantages = _judged(verdict, raw, mask)
    tokens = mask > 0
    spread, left = np.var(returns[tokens]), np.var((returns - values)[tokens])
    critic = {
        "value": float(values[tokens].mean()),
        "return": float(returns[tokens].mean()),
        "explained_variance": float(1 - left / spread) if spread > _NONE else 0.0,  # 0: equal returns
    }
    returns = np.where(_of_rows(verdict, verdict.scale) > 0, returns, values * mask)
    return advantages, returns.astype(np.float32), {"advantage": _spread(advantages[tokens]), "critic": critic}


def gae(rewards: np.ndarray, values: np.ndarray, mask: np.ndarray, *, gamma: float, lam: float) -> np.ndarray:
    """A_t = delta_t + gamma lam A_{t+1}, delta_t = r_t + gamma V_{t+1} - V_t, both 0 past the end: float32 [R, T']."""
    advantages, after, value = np.zeros(mask.shape, np.float64), np.zeros(len(mask)), np.zeros(len(mask))
    for t in reversed(range(mask.shape[1])):
        after = (rewards[:, t] + gamma * value - values[:, t] + gamma * lam * after) * mask[:, t]
        value = values[:, t] * mask[:, t]
        advantages[:, t] = after
    return advantages.astype(np.float32)


def whitened(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(x - mean) / sqrt(variance + 1e-8) over all tokens, the variance unbiased, float32 [R, T'], 0 elsewhere."""
    tokens = x[mask > 0].astype(np.float64)
    if not len(tokens):
        return np.zeros(mask.shape, np.float32)
    variance = tokens.var(ddof=1) if len(tokens) > 1 else 0.0
    return ((x - tokens.mean()) / math.sqrt(variance + _WHITE) * mask).astype(np.float32)


def prime(
    verdict: Verdict,
    mask: np.ndarray,
    log_ratios: np.ndarray,
    *,
    beta: float,
    outcome_coef: float,
    process_coef: float,
) -> tuple[np.ndarray, dict[str, dict[str, float]]]:
    """PRIME's advantages (arXiv 2502.01456), as its code has them (recipe/prime/prime_core_algos.py, prime_dp_rm.py).

    log_ratios: float32 [R, T'], log pi - log pi_start of the process model. The reward of a token is beta times its
    log-ratio, and 0 for the last token. These rewards are divided by the largest absolute sum from any token to the end
    of its response, and the mean of the other responses is subtracted. The outcome is agreement with the label; it
    comes with the last token, less the mean of the other responses. Both rewards are multiplied by their weights,
    summed up from each token to the end, and whitened.
    """
    shape, last = verdict.rewards.shape, _last(mask)
    process = beta * log_ratios * mask * (1 - last)
    process = process / (np.abs(_to_the_end(process)).max(initial=0.0) + EPSILON)
    others, count = max(1, shape[1] - 1), shape[1]
    means = (process.sum(1) / mask.sum(1)).reshape(shape)
    if count > 1:
        base = np.repeat(means.sum(1) / others, count)[:, None]
        process = (process * count / others - base) * mask
    outcome = leave_one_out(verdict.rewards).reshape(-1, 1) * last
    advantages = _judged(verdict, _to_the_end(process_coef * process + outcome_coef * outcome) * mask, mask)
    sums = (log_ratios * mask).sum(1).reshape(shape)
    found = {"ordered_pairs": ordered_pairs(sums, verdict.rewards), "log_ratio": float(log_ratios[mask > 0].mean())}
    return advantages, {"advantage": _spread(advantages[mask > 0]), "process": found}


def ordered_pairs(scores: np.ndarray, rewards: np.ndarray) -> float:
    """Of the pairs of responses to one question with different rewards [P, G], the share that scores [P, G] put in the
    same order. Equal scores count half. The result is 0.5 if there is no such pair."""
    better = rewards[:, :, None] > rewards[:, None, :]
    right = np.where(scores[:, :, None] > scores[:, None, :], 1.0, 0.5 * (scores[:, :, None] == scores[:, None, :]))
    return float(right[better].mean()) if better.any() else 0.5


def _last(mask: np.ndarray) -> np.ndarray:
    """float32 [R, T'], 1 on the last token of each response."""
    return mask * (np.cumsum(mask, 1) == mask.sum(1, keepdims=True))


def _to_the_end(x: np.ndarray) -> np.ndarray:
    """For each token the sum from this token to the end of its row."""
    return np.cumsum(x[:, ::-1], 1)[:, ::-1]


def _judged(verdict: Verdict, advantages: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A + bonus * mean |A| over the tokens of the question, A = scale * whitened advantages. What a question with a
    scale of 0 has does not shift the others': the rest is whitened without it."""
    scale = _of_rows(verdict, verdict.scale)
    judged = scale * whitened(advantages, mask * (scale > 0))
    groups = (len(verdict.scale), -1)
    means = np.abs(judged).reshape(groups).sum(1) / mask.reshape(groups).sum(1)
    return ((judged + verdict.bonus.reshape(-1, 1) * _of_rows(verdict, means)) * mask).astype(np.float32)


def _of_rows(verdict: Verdict, x: np.ndarray) -> np.ndarray:
    """A number of each question [P], for each of its rows: [R, 1]."""
    return np.repeat(x, verdict.rewards.shape[1])[:, None]


def _spread(x: np.ndarray) -> dict[str, float]:
    return {"mean": float(x.mean()), "max": float(x.max()), "min": float(x.min())}
