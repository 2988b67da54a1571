"""From rewards to advantages. The group axis is kept: rewards and advantages are [P, G]."""

import numpy as np

EPSILON = 1e-6


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
