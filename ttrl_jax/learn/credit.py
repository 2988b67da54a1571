"""How rewards become advantages: pure functions on the host, one for each algorithm. Rewards keep the group axis,
[P, G]; advantages are per token, [R, T'], in the order of the rows."""

import numpy as np

from ttrl_jax.reward.judge import Verdict

EPSILON = 1e-6


def grpo(verdict: Verdict, mask: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    """GRPO's advantages: scale * group_normalised(rewards) + bonus, the same for all tokens of a response.

    verdict: on the samples that are trained on: rewards and bonus float32 [P, G], scale float32 [P], of which 0 takes
    away what a question teaches; mask float32 [R, T'], 1 on response tokens, R = P * G -> advantages float32 [R, T'], 0
    where there is no token; and their mean, max and min over the responses.
    """
    groups = verdict.scale[:, None] * group_normalised(verdict.rewards) + verdict.bonus
    found = {"mean": float(groups.mean()), "max": float(groups.max()), "min": float(groups.min())}
    return groups.reshape(-1, 1) * mask, found


def group_normalised(rewards: np.ndarray) -> np.ndarray:
    """GRPO's advantage (arXiv 2402.03300, section 4.1.1): each reward against its own group.

    rewards float32 [P, G] -> float32 [P, G], (r - mean) / (std + 1e-6) with the unbiased std, as verl computes it
    (core_algos.compute_grpo_outcome_advantage). A group of one keeps its reward (mean 0, std 1 there). A unanimous
    group gets zeros.
    """
    rewards = np.asarray(rewards, np.float32)
    if rewards.shape[1] == 1:
        return rewards / np.float32(1 + EPSILON)
    # In float64 the mean of equal rewards is exactly theirs. One off by a last digit would be divided by no more than
    # 1e-6, and push.
    centred = rewards - rewards.mean(1, keepdims=True, dtype=np.float64).astype(np.float32)
    return centred / (rewards.std(1, ddof=1, keepdims=True) + np.float32(EPSILON))
