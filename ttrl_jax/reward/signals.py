"""Metrics of the votes of a step that need no truth."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from ttrl_jax.reward.equivalence import Clusters, cluster
from ttrl_jax.reward.extract import Answer
from ttrl_jax.reward.judge import Verdict
from ttrl_jax.reward.vote import Ballot


def vote_metrics(
    ballots: Sequence[Ballot],
    verdict: Verdict,
    chosen: np.ndarray,
    flips: Sequence[bool | None],
    *,
    classes: Callable[[Sequence[Answer | None]], Clusters] = cluster,
) -> dict[str, float]:
    """Measure a step without any truth; every value is a mean over the P questions unless said otherwise.

    Args:
      verdict: on these ballots; chosen: int [P, G], the samples that are trained on.
      flips: [P], whether the winner differs from the one at the last visit of the question; None: it had no visit.
      classes: which answers are the same, as the votes were counted.

    Returns, with c1 and c2 the two largest counts and the names of the reference where it has one:
      majority_ratio          c1 / V (votes without an answer stay in the denominator)
      runner_up_margin        (c1 - c2) / V
      majority_voting_reward  mean reward of the chosen samples
      rewards/mean, max, min  over all P x G chosen samples
      accuracy_reward         share of these that agree with the label, whatever format and rule make of the reward
      no_answer_rate          share of the P x V votes without an answer
      no_label_rate           share of questions that nobody answered
      tie_rate, unanimous     share of questions with a tie for the label; where all V votes agree
      distinct_answers        number of classes
      vote_entropy            nats, over the classes (votes without an answer are left out); 0 without any
      undecided               pairs of answers that may be the same, but could not be decided in time
      distinct_labels         different winners among those of the questions / their number; absent without any winner
      zero_advantage_groups   share of questions whose chosen rewards are all equal, or whose scale is 0
      flip_rate               share of the questions seen before whose winner changed; absent if there are none
    """
    counted = [sorted(b.counts, reverse=True) + [0, 0] for b in ballots]
    votes = np.array([len(b.classes) for b in ballots])
    top, runner_up = np.array([c[0] for c in counted]), np.array([c[1] for c in counted])
    answered = np.array([sum(b.counts) for b in ballots])
    trained = np.take_along_axis(verdict.rewards, chosen, axis=1)
    metrics = {
        "majority_ratio": np.mean(top / votes),
        "runner_up_margin": np.mean((top - runner_up) / votes),
        "majority_voting_reward": np.mean(trained, dtype=np.float64),
        "rewards/mean": np.mean(trained, dtype=np.float64),
        "rewards/max": np.max(trained),
        "rewards/min": np.min(trained),
        "accuracy_reward": np.mean(_agreed(ballots, verdict.labels, chosen)),
        "no_answer_rate": 1 - answered.sum() / votes.sum(),
        "no_label_rate": np.mean([b.label is None for b in ballots]),
        "tie_rate": np.mean([b.tied for b in ballots]),
        "unanimous": np.mean(top == votes),
        "distinct_answers": np.mean([len(b.counts) for b in ballots]),
        "vote_entropy": np.mean([_entropy(b.counts) for b in ballots]),
        "undecided": np.mean([b.undecided for b in ballots]),
        "zero_advantage_groups": np.mean(np.all(trained == trained[:, :1], axis=1) | (verdict.scale == 0)),
    }
    labels = [b.answers[winner] for b, winner in zip(ballots, verdict.winners, strict=True) if winner is not None]
    if labels:
        metrics["distinct_labels"] = len(set(classes(labels).ids)) / len(labels)
    known = [flip for flip in flips if flip is not None]
    if known:
        metrics["flip_rate"] = np.mean(known)
    return {name: float(value) for name, value in metrics.items()}


def _agreed(ballots: Sequence[Ballot], labels: Sequence[int | None], chosen: np.ndarray) -> list[bool]:
    """Of each chosen sample, whether its answer is the label."""
    return [
        label is not None and ballot.classes[v] == label
        for ballot, label, picked in zip(ballots, labels, chosen, strict=True)
        for v in picked
    ]


def _entropy(counts: Sequence[int]) -> float:
    total = sum(counts)
    return sum(c / total * math.log(total / c) for c in counts)
